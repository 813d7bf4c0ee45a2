//! Everything that happened, as a hash, and as text when a seed is replayed.

use std::fmt::Write;

pub(crate) struct Trace {
    hasher: blake3::Hasher,
    print: bool,
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
    pub(crate) fn new(print: bool) -> Self {
        Self { hasher: blake3::Hasher::new(), print }
    }

    pub(crate) fn say(&mut self, at: u64, what: std::fmt::Arguments<'_>) {
        let _ = writeln!(Feed(&mut self.hasher), "{at} {what}");
        if self.print {
            println!("{at:>7} {what}");
        }
    }

    pub(crate) fn hash(&self) -> blake3::Hash {
        self.hasher.finalize()
    }
}
