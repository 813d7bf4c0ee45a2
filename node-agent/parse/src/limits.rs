//! Every bound of parsing: those a node may set, and those that are fixed.

use std::time::Duration;

/// Most pages of a document; beyond it the document is refused.
pub const PAGES_MAX: u32 = 100_000;
/// Longest packet between parent and child, in bytes. Anything longer travels in a memory file.
pub(crate) const PACKET_MAX: usize = 2_048;
/// Longest sentence in an error, in bytes.
pub(crate) const MESSAGE_MAX: usize = 1_000;
/// Most lines and words of a page, and bytes of their text.
pub(crate) const LINES_MAX: usize = 20_000;
pub(crate) const WORDS_MAX: usize = 100_000;
pub(crate) const TEXT_BYTES_MAX: usize = 4 << 20;
/// Longest word in bytes.
pub(crate) const WORD_BYTES_MAX: usize = 1_024;
/// Most pixels a picture may have in its file before it is shrunk to the engine's bound: phones make 200 million.
pub(crate) const DECODED_PIXELS_MAX: u64 = 220_000_000;
/// Most bytes of a decoded picture: 64 million pixels of four channels with 16 bits, or 200 million of three with 8.
pub(crate) const DECODED_BYTES_MAX: u64 = 700 << 20;
/// Longest side of a picture in its file.
pub(crate) const DECODED_SIDE_MAX: u32 = 60_000;
/// Resolutions that a page may be asked at, in dots per inch.
pub(crate) const DPI_MIN: f32 = 36.0;
pub(crate) const DPI_MAX: f32 = 1_200.0;
/// Bytes that the child's thread may use for its stack: parsers recurse with a document's nesting.
pub(crate) const STACK_BYTES: usize = 64 << 20;
/// Open descriptors of a child: three standard ones, the document, one reply, and a little.
pub(crate) const DESCRIPTORS_MAX: u64 = 12;
/// Largest file a child may write: the pixels of one page.
pub(crate) const FILE_BYTES_MAX: u64 = 256 << 20;
/// Processor time that a child may use in all its life, in seconds.
pub(crate) const CPU_LIFE_S: u64 = 24 * 3_600;
/// Deaths of its child after which a document isn't tried any more: one after the other, and all together.
pub(crate) const DEATHS_IN_A_ROW_MAX: u32 = 3;
pub(crate) const DEATHS_MAX: u32 = 50;
/// Bytes of decoded page contents that a child keeps before it reads a PDF anew: its parser never forgets them.
pub(crate) const CONTENT_BYTES_MAX: usize = 64 << 20;
/// A child says that it is ready within this time.
pub(crate) const START: Duration = Duration::from_secs(20);
/// The variable that carries a child's limits; its whole environment.
pub(crate) const VARIABLE: &str = "INGLE_PARSE_LIMITS";

/// What a node sets. The defaults fit a page of 64 million pixels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Address space of a child in bytes besides the document itself, 256 MiB to 64 GiB. Default: 2 GiB.
    pub memory_bytes: u64,
    /// Processor time of one call in seconds, 1 to 3,600. Default: 60.
    pub cpu_s: u64,
    /// Longest wait for a document to open. Default: 60 s.
    pub open: Duration,
    /// Longest wait for a page. Default: 90 s.
    pub page: Duration,
    /// Longest wait for a free child. Default: 10 minutes.
    pub wait: Duration,
    /// Largest document in bytes, at most 64 GiB. Default: 1 GiB.
    pub document_bytes_max: u64,
    /// Most children at a time, 1 to 64. Default: 2.
    pub children_max: u32,
    /// Documents after which a child is replaced, at least 1. Default: 200.
    pub documents_per_child: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory_bytes: 2 << 30,
            cpu_s: 60,
            open: Duration::from_secs(60),
            page: Duration::from_secs(90),
            wait: Duration::from_secs(600),
            document_bytes_max: 1 << 30,
            children_max: 2,
            documents_per_child: 200,
        }
    }
}

impl Limits {
    /// Every number within its range.
    pub(crate) fn bounded(self) -> Self {
        Limits {
            memory_bytes: self.memory_bytes.clamp(256 << 20, 64 << 30),
            cpu_s: self.cpu_s.clamp(1, 3_600),
            document_bytes_max: self.document_bytes_max.min(64 << 30),
            children_max: self.children_max.clamp(1, 64),
            documents_per_child: self.documents_per_child.max(1),
            ..self
        }
    }

    /// What a child has to know, as its variable carries it.
    pub(crate) fn for_child(&self) -> String {
        format!("{} {} {}", self.memory_bytes, self.cpu_s, self.document_bytes_max)
    }

    /// Reads what [`Limits::for_child`] wrote; the defaults where there is nothing to read.
    pub(crate) fn in_child(variable: Option<&str>) -> Self {
        let mut limits = Limits::default();
        let mut numbers = variable.unwrap_or_default().split(' ').map(str::parse);
        if let (Some(Ok(memory)), Some(Ok(cpu)), Some(Ok(document))) = (numbers.next(), numbers.next(), numbers.next())
        {
            limits.memory_bytes = memory;
            limits.cpu_s = cpu;
            limits.document_bytes_max = document;
        }
        limits.bounded()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_reads_what_its_parent_wrote() {
        let limits = Limits { memory_bytes: 300 << 20, cpu_s: 7, document_bytes_max: 5 << 20, ..Limits::default() };
        let read = Limits::in_child(Some(&limits.for_child()));
        assert_eq!((read.memory_bytes, read.cpu_s, read.document_bytes_max), (300 << 20, 7, 5 << 20));
        assert_eq!(Limits::in_child(None), Limits::default());
        assert_eq!(Limits::in_child(Some("many few")), Limits::default());
        let wild = Limits::in_child(Some("1 999999 1"));
        assert_eq!((wild.memory_bytes, wild.cpu_s), (256 << 20, 3_600), "clamped");
    }
}
