//! Specifications and page tokens as they come from outside: digests that don't depend on map order, numbers in their form.

use ingle_proto::{ErrorCode, Problem, v1};
use prost::Message as _;

/// Entries of a page: 100 unless asked otherwise, at most 1000.
pub(super) fn page_size(asked: u32) -> Result<usize, Problem> {
    match asked {
        0 => Ok(100),
        1..=1000 => Ok(asked as usize),
        _ => Err(Problem::invalid("page_size", format!("expected 1 to 1000, or 0 for 100; got {asked}"))),
    }
}

/// The number in `j-<number>`.
pub(super) fn job_number(id: &str) -> Result<u64, Problem> {
    let number = id.strip_prefix("j-").and_then(|number| number.parse().ok());
    number
        .filter(|number| ingle_proto::job::job_id(*number).as_str() == id)
        .ok_or_else(|| Problem::invalid("job_id", format!("expected j-<number>, got {:.80?}", id)))
}

pub(super) fn no_job(number: u64) -> Problem {
    let id = ingle_proto::job::job_id(number);
    Problem::new(ErrorCode::JobNotFound, format!("there is no job {id}; see `ingle jobs list`"))
}

/// BLAKE3 of a specification as given; the same for the same one, whatever order its maps are in.
pub(super) fn digest(spec: &v1::JobSpec) -> Vec<u8> {
    let mut spec = spec.clone();
    let mut labels: Vec<(String, String)> = spec.labels.drain().collect();
    labels.sort_unstable();
    let sampling = spec.generate.as_mut().and_then(|generate| generate.sampling.as_mut());
    let mut bias: Vec<(u32, f32)> = sampling.map(|s| s.logit_bias.drain().collect()).unwrap_or_default();
    bias.sort_unstable_by_key(|(token, _)| *token);
    let mut hash = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    part(&spec.encode_to_vec());
    part(&(labels.len() as u64).to_le_bytes());
    for (key, value) in &labels {
        part(key.as_bytes());
        part(value.as_bytes());
    }
    for (token, bias) in &bias {
        part(&token.to_le_bytes());
        part(&bias.to_le_bytes());
    }
    hash.finalize().as_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(labels: &[(&str, &str)]) -> v1::JobSpec {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        v1::JobSpec { kind: 1, labels, ..Default::default() }
    }

    #[test]
    fn digests_do_not_depend_on_map_order() {
        let pairs: Vec<(String, String)> = (0..32).map(|i| (format!("k{i}"), format!("v{i}"))).collect();
        let forward: Vec<(&str, &str)> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        let backward: Vec<(&str, &str)> = forward.iter().rev().copied().collect();
        assert_eq!(digest(&spec(&forward)), digest(&spec(&backward)));
        assert_ne!(digest(&spec(&[("a", "b")])), digest(&spec(&[("a", "c")])));
        assert_ne!(digest(&spec(&[("a", "bc")])), digest(&spec(&[("ab", "c")])));
        assert_ne!(digest(&spec(&[])), digest(&v1::JobSpec { force: true, ..spec(&[]) }));
        let biased = |tokens: &[u32]| v1::JobSpec {
            generate: Some(v1::GenerateOptions {
                sampling: Some(v1::Sampling {
                    logit_bias: tokens.iter().map(|token| (*token, 1.5)).collect(),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..spec(&[])
        };
        assert_eq!(digest(&biased(&[1, 2, 3, 4, 5])), digest(&biased(&[5, 4, 3, 2, 1])));
        assert_ne!(digest(&biased(&[1])), digest(&biased(&[2])));
    }

    #[test]
    fn job_ids_have_one_form() {
        assert_eq!(job_number("j-17").unwrap(), 17);
        for bad in
            ["", "17", "j-", "j-x", "j--1", "j-+1", "j-01", "j-99999999999999999999", "J-1", "j-1 ", &"j".repeat(9999)]
        {
            assert_eq!(job_number(bad).unwrap_err().code, ErrorCode::InvalidArgument, "{bad:.20}");
        }
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(page_size(0).unwrap(), 100);
        assert_eq!(page_size(1000).unwrap(), 1000);
        assert!(page_size(1001).is_err());
        assert!(page_size(u32::MAX).is_err());
    }
}
