//! Everything that happened, as a hash where two runs are compared, and as text where a seed is replayed.

use std::fmt::Write;

/// What is made of a trace: to format it takes as long as to make it happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tracing {
    Off,
    Hashed,
    Printed,
}

pub(crate) struct Trace {
    hasher: blake3::Hasher,
    tracing: Tracing,
}

/// Feeds what is formatted to the hash without keeping it.
struct Feed<'a>(&'a mut blake3::Hasher);

impl Write for Feed<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

impl Trace {
    pub(crate) fn new(tracing: Tracing) -> Self {
        Self { hasher: blake3::Hasher::new(), tracing }
    }

    pub(crate) fn say(&mut self, at: u64, what: std::fmt::Arguments<'_>) {
        match self.tracing {
            Tracing::Off => return,
            Tracing::Hashed => {}
            Tracing::Printed => println!("{at:>7} {what}"),
        }
        let _ = writeln!(Feed(&mut self.hasher), "{at} {what}");
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}
