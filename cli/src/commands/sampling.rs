//! Options that say how tokens are chosen, for jobs and chat alike.

use clap::Args;
use ingle_proto::v1;

/// How tokens are chosen.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Choosing tokens")]
pub(crate) struct SamplingArgs {
    /// Most tokens to write for one document or answer (1 to 1000000)
    #[arg(long, allow_negative_numbers = true, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) max_tokens: Option<u32>,
    /// 0 takes the likeliest token; up to 2 the more varied [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "T", value_parser = |t: &str| float(t, 0.0, 2.0))]
    temperature: Option<f32>,
    /// Choose among the K likeliest tokens; 0 for all
    #[arg(long, allow_negative_numbers = true, value_name = "K", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    top_k: Option<u32>,
    /// Choose among the likeliest tokens that make up probability P
    #[arg(long, allow_negative_numbers = true, value_name = "P", value_parser = |t: &str| above_zero(t, 1.0))]
    top_p: Option<f32>,
    /// Leave out tokens less likely than P times the likeliest
    #[arg(long, allow_negative_numbers = true, value_name = "P", value_parser = |t: &str| float(t, 0.0, 1.0))]
    min_p: Option<f32>,
    /// Above 1 makes what was said lately less likely
    #[arg(long, allow_negative_numbers = true, value_name = "R", value_parser = |t: &str| above_zero(t, 10.0))]
    repetition_penalty: Option<f32>,
    /// The same seed gives the same text on the same kind of node
    #[arg(long, allow_negative_numbers = true, value_name = "N")]
    seed: Option<u64>,
    /// End where this text would come; may be given up to 16 times
    #[arg(long, value_name = "TEXT")]
    pub(crate) stop: Vec<String>,
}

impl SamplingArgs {
    /// For the wire; absent where nothing was said, so that the coordinator's defaults hold.
    pub(crate) fn to_wire(&self) -> Option<v1::Sampling> {
        let sampling = v1::Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
            ..Default::default()
        };
        (sampling != v1::Sampling::default()).then_some(sampling)
    }

    /// Whether anything was said.
    pub(crate) fn given(&self) -> bool {
        self.max_tokens.is_some() || !self.stop.is_empty() || self.to_wire().is_some()
    }
}

fn float(text: &str, low: f32, high: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(format!("expected a number from {low} to {high}")),
    }
}

fn above_zero(text: &str, high: f32) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value > 0.0 && value <= high => Ok(value),
        _ => Err(format!("expected a number above 0 and at most {high}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_range_are_refused() {
        for bad in ["NaN", "inf", "-0.1", "2.1", "1e308", "x", ""] {
            assert!(float(bad, 0.0, 2.0).is_err(), "{bad}");
        }
        assert_eq!(float("-0", 0.0, 2.0), Ok(-0.0));
        assert!(above_zero("0", 1.0).is_err());
        assert!(above_zero("1", 1.0).is_ok());
    }

    #[test]
    fn nothing_said_is_nothing_sent() {
        assert_eq!(SamplingArgs::default().to_wire(), None);
        let args = SamplingArgs { temperature: Some(0.7), ..Default::default() };
        assert_eq!(args.to_wire().and_then(|s| s.temperature), Some(0.7));
    }
}
