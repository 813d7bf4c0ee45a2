//! Settings in layers: defaults, then a TOML file, then the environment, then the command line.

mod load;
mod sections;

pub use load::{ConfigError, load, load_from};
pub use sections::{LogFormat, TelemetryConfig, TlsConfig, check_loopback};
