//! What is asked of a scan, checked.

use ingle_proto::choice::choice;
use ingle_proto::job::SETTLE_S_MAX;
use ingle_proto::storage::Object;
use ingle_proto::v1::{self, JobKind};
use ingle_proto::{Epoch, JobId, Problem};

use super::exclude::Exclude;

/// A checked request.
#[derive(Debug, Clone)]
pub struct Request {
    /// Of the sender, if it is a coordinator.
    pub epoch: Option<Epoch>,
    /// The job, if it is one's.
    pub job: Option<JobId>,
    /// What to list.
    pub input: v1::input_spec::Input,
    /// Where results go.
    pub place: Object,
    /// What the job does.
    pub kind: JobKind,
    /// Digest of the model.
    pub model: Vec<u8>,
    /// Digest of the parameters.
    pub parameters: Vec<u8>,
    /// Do everything again.
    pub force: bool,
    /// Where documents without text of their own may have it.
    pub text_from: Option<Object>,
    /// What is left out.
    pub exclude: Exclude,
    /// As whom all of it is done.
    pub principal: String,
    /// How it looks at what moves.
    pub look: Look,
}

/// How a scan looks at what moves.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// How long a document must have been still, milliseconds.
    pub settle_ms: i64,
    /// Of a standing job the number of its pass; 0 of one that looks once.
    pub pass: u64,
    /// Believe that most documents left at once.
    pub allow_mass_deletion: bool,
    /// Stands for what is listed of the root: one file, all of it, or less.
    pub scope: Vec<u8>,
}

/// Reads a `ScanRequest`.
///
/// # Errors
/// `INVALID_ARGUMENT` names the field; `PATH_REFUSED` for paths.
pub fn check(wire: v1::ScanRequest) -> Result<Request, Problem> {
    let kind = choice("kind", wire.kind, JobKind::as_str_name)?;
    for (field, digest) in [("model_digest", &wire.model_digest), ("parameters_digest", &wire.parameters_digest)] {
        if !digest.is_empty() && digest.len() != 32 {
            return Err(Problem::invalid(field, format!("a BLAKE3 digest has 32 bytes, got {}", digest.len())));
        }
    }
    if wire.settle_s > SETTLE_S_MAX {
        return Err(Problem::invalid("settle_s", format!("expected 0 to {SETTLE_S_MAX}, got {}", wire.settle_s)));
    }
    let look = Look {
        settle_ms: i64::from(wire.settle_s) * 1000,
        pass: wire.pass,
        allow_mass_deletion: wire.allow_mass_deletion,
        scope: scope(&wire),
    };
    Ok(Request {
        epoch: wire.epoch.map(Epoch::from),
        job: if wire.job_id.is_empty() { None } else { Some(JobId::parse(&wire.job_id)?) },
        input: wire.input.and_then(|spec| spec.input).ok_or_else(|| Problem::missing("input"))?,
        place: Object::try_from(wire.place.ok_or_else(|| Problem::missing("place"))?)?,
        kind,
        model: wire.model_digest.to_vec(),
        parameters: wire.parameters_digest.to_vec(),
        force: wire.force,
        text_from: wire.text_from.map(Object::try_from).transpose()?,
        exclude: Exclude::new(&wire.exclude)?,
        principal: wire.principal,
        look,
    })
}

fn scope(wire: &v1::ScanRequest) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&wire.input.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default());
    for pattern in &wire.exclude {
        hasher.update(&(pattern.len() as u64).to_le_bytes()).update(pattern.as_bytes());
    }
    hasher.finalize().as_bytes().to_vec()
}
