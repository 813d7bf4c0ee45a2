//! What a file is, from its first bytes and its name: something to parse, plain text, or nothing we read and why.

/// Bytes of a file's beginning that are enough to tell.
pub const HEAD_BYTES: usize = 4_096;
/// Where a PDF's mark may stand: readers accept junk before it.
const PDF_MARK_WITHIN: usize = 1_024;

/// A format that is parsed here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Portable Document Format.
    Pdf,
    /// Portable Network Graphics.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP.
    WebP,
    /// GIF; its first picture.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF, with its pages.
    Tiff,
    /// JPEG 2000, as a file or a bare codestream.
    Jpeg2000,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Kind; 8] =
        [Kind::Pdf, Kind::Png, Kind::Jpeg, Kind::WebP, Kind::Gif, Kind::Bmp, Kind::Tiff, Kind::Jpeg2000];

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pdf => "PDF",
            Kind::Png => "PNG",
            Kind::Jpeg => "JPEG",
            Kind::WebP => "WebP",
            Kind::Gif => "GIF",
            Kind::Bmp => "BMP",
            Kind::Tiff => "TIFF",
            Kind::Jpeg2000 => "JPEG 2000",
        }
    }

    pub(crate) fn number(self) -> u8 {
        Kind::ALL.iter().position(|kind| *kind == self).expect("every kind stands in ALL") as u8
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Kind::ALL.get(usize::from(number)).copied()
    }
}

/// What to do with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Give it to [`crate::Host::open`].
    Parse(Kind),
    /// It is text already: UTF-8, as far as was looked.
    Text,
    /// Skip it; the reason names what it is.
    Unsupported(String),
}

/// Looks at a file's first bytes (at most [`HEAD_BYTES`] count) and its name. Bytes decide; the name only helps to say what an
/// unknown thing is.
#[must_use]
pub fn look(head: &[u8], name: &str) -> Verdict {
    let head = &head[..head.len().min(HEAD_BYTES)];
    if head.is_empty() {
        return Verdict::Unsupported(crate::error::EMPTY.into());
    }
    if let Some(kind) = parsed(head) {
        return Verdict::Parse(kind);
    }
    if let Some(what) = foreign(head, name) {
        return Verdict::Unsupported(what.into());
    }
    if is_text(head) {
        return if is_svg(head) { Verdict::Unsupported("SVG drawing".into()) } else { Verdict::Text };
    }
    Verdict::Unsupported(by_name(name).map_or_else(|| "unknown binary format".into(), str::to_owned))
}

fn parsed(head: &[u8]) -> Option<Kind> {
    let is = |mark: &[u8]| head.starts_with(mark);
    if is(b"\x89PNG\r\n\x1a\n") {
        Some(Kind::Png)
    } else if is(b"\xff\xd8\xff") {
        Some(Kind::Jpeg)
    } else if is(b"GIF87a") || is(b"GIF89a") {
        Some(Kind::Gif)
    } else if is(b"RIFF") && head.get(8..12) == Some(b"WEBP") {
        Some(Kind::WebP)
    } else if is(b"II*\0") || is(b"MM\0*") || is(b"II+\0\x08\0\0\0") || is(b"MM\0+\0\x08\0\0") {
        Some(Kind::Tiff)
    } else if is(b"\0\0\0\x0cjP  \r\n\x87\n") || is(b"\xff\x4f\xff\x51") {
        Some(Kind::Jpeg2000)
    } else if is_bmp(head) {
        Some(Kind::Bmp)
    } else if head[..head.len().min(PDF_MARK_WITHIN)].windows(5).any(|window| window == b"%PDF-") {
        Some(Kind::Pdf)
    } else {
        None
    }
}

/// `BM` alone begins many a text: the header's length and planes must fit too.
fn is_bmp(head: &[u8]) -> bool {
    head.starts_with(b"BM")
        && head.get(14..18).is_some_and(|size| matches!(size, [12 | 40 | 52 | 56 | 64 | 108 | 124, 0, 0, 0]))
}

/// Formats that others read, by their marks.
fn foreign(head: &[u8], name: &str) -> Option<&'static str> {
    let is = |mark: &[u8]| head.starts_with(mark);
    if head.get(4..8) == Some(b"ftyp") {
        return Some(match head.get(8..12).unwrap_or_default() {
            b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1" => "HEIC picture",
            b"avif" | b"avis" => "AVIF picture",
            _ => "film or sound",
        });
    }
    if is(b"PK\x03\x04") || is(b"PK\x05\x06") {
        return Some(by_name(name).unwrap_or("ZIP archive"));
    }
    const MARKS: &[(&[u8], &str)] = &[
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old Office document"),
        (b"{\\rtf", "RTF document"),
        (b"%!PS", "PostScript document"),
        (b"\xc5\xd0\xd3\xc6", "PostScript document"),
        (b"AT&TFORM", "DjVu document"),
        (b"8BPS", "Photoshop picture"),
        (b"\x97JB2\r\n\x1a\n", "bare JBIG2 picture"),
        (b"\xff\x0a", "JPEG XL picture"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL picture"),
        (b"\0\0\x01\0", "icon"),
        (b"\x1f\x8b", "gzip archive"),
        (b"BZh", "bzip2 archive"),
        (b"\xfd7zXZ\0", "xz archive"),
        (b"\x28\xb5\x2f\xfd", "zstd archive"),
        (b"7z\xbc\xaf\x27\x1c", "7z archive"),
        (b"Rar!\x1a\x07", "RAR archive"),
        (b"\x7fELF", "program"),
        (b"MZ", "program"),
        (b"SQLite format 3\0", "database"),
        (b"PAR1", "Parquet table"),
        (b"ID3", "sound"),
        (b"OggS", "film or sound"),
        (b"fLaC", "sound"),
        (b"RIFF", "film or sound"),
        (b"\x1aE\xdf\xa3", "film"),
    ];
    let found = MARKS.iter().find(|(mark, _)| is(mark)).map(|(_, what)| *what);
    // Two letters that also begin texts: only where no text follows.
    found.filter(|what| !(matches!(*what, "program") && is(b"MZ") && is_text(head)))
}

/// Says what a file would be by its name's ending.
fn by_name(name: &str) -> Option<&'static str> {
    let ending = name.rsplit_once('.')?.1.to_ascii_lowercase();
    Some(match ending.as_str() {
        "docx" | "docm" => "Word document",
        "xlsx" | "xlsm" => "Excel table",
        "pptx" | "pptm" => "PowerPoint presentation",
        "odt" | "ods" | "odp" | "odg" => "OpenDocument file",
        "doc" | "xls" | "ppt" => "old Office document",
        "epub" => "EPUB book",
        "pages" | "numbers" | "key" => "iWork document",
        "heic" | "heif" => "HEIC picture",
        "avif" => "AVIF picture",
        "svg" | "svgz" => "SVG drawing",
        "pdf" => "a file named PDF that has no PDF in it",
        "png" | "jpg" | "jpeg" | "tif" | "tiff" | "webp" | "gif" | "bmp" => "a file named as a picture that is none",
        "zip" | "tar" | "jar" => "archive",
        "mp4" | "mov" | "mkv" | "avi" | "mp3" | "wav" => "film or sound",
        _ => return None,
    })
}

/// UTF-8 without the controls that no text has; a character cut off at the end doesn't count.
fn is_text(head: &[u8]) -> bool {
    let valid = match std::str::from_utf8(head) {
        Ok(text) => text,
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !valid.is_empty() && !valid.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t' | '\x0c'))
}

fn is_svg(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head);
    let start = text.trim_start_matches(['\u{feff}', ' ', '\n', '\r', '\t']);
    start.starts_with("<svg") || ((start.starts_with("<?xml") || start.starts_with("<!")) && start.contains("<svg"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide() {
        let check = |head: &[u8], name: &str, expect: Verdict| assert_eq!(look(head, name), expect, "{name}");
        check(b"\x89PNG\r\n\x1a\n....", "a.pdf", Verdict::Parse(Kind::Png));
        check(b"\xff\xd8\xff\xe0", "a", Verdict::Parse(Kind::Jpeg));
        check(b"RIFF\x10\0\0\0WEBPVP8L", "a", Verdict::Parse(Kind::WebP));
        check(b"RIFF\x10\0\0\0WAVEfmt ", "a.wav", Verdict::Unsupported("film or sound".into()));
        check(b"GIF89a", "a", Verdict::Parse(Kind::Gif));
        check(b"MM\0*\0\0\0\x08", "a", Verdict::Parse(Kind::Tiff));
        check(b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0", "a", Verdict::Parse(Kind::Bmp));
        check(b"BMW is a maker of cars\n", "a.bmp", Verdict::Text);
        check(b"junk before\n%PDF-1.4", "a", Verdict::Parse(Kind::Pdf));
        check(b"\xff\x4f\xff\x51\0", "a.j2k", Verdict::Parse(Kind::Jpeg2000));
        // A picture first, a PDF after it: what stands at the very beginning wins.
        check(b"\x89PNG\r\n\x1a\n\0\0%PDF-1.4", "both.pdf", Verdict::Parse(Kind::Png));
    }

    #[test]
    fn what_others_read_is_named() {
        let check = |head: &[u8], name: &str, expect: &str| {
            assert_eq!(look(head, name), Verdict::Unsupported(expect.into()), "{name}");
        };
        check(b"<?xml version='1.0'?>\n<!-- a --><svg width='1'/>", "a.xml", "SVG drawing");
        check(b"\xef\xbb\xbf<svg/>", "a", "SVG drawing");
        check(b"\0\0\0\x18ftypheic\0\0\0\0", "a.jpg", "HEIC picture");
        check(b"PK\x03\x04\x14\0", "letter.DOCX", "Word document");
        check(b"PK\x03\x04\x14\0", "things", "ZIP archive");
        check(b"", "a.pdf", "empty file");
        check(b"\0\x01\x02\x03", "a.pdf", "a file named PDF that has no PDF in it");
        check(b"\0\x01\x02\x03", "a", "unknown binary format");
        check(b"{\\rtf1", "a.rtf", "RTF document");
    }

    #[test]
    fn text_is_text() {
        assert_eq!(look("Zażółć gęślą\n".as_bytes(), "a.bin"), Verdict::Text);
        let cut = "ä".repeat(2_049);
        assert_eq!(look(&cut.as_bytes()[..4_097], "a"), Verdict::Text, "a character cut at the end");
        assert_eq!(look(b"MZ is an abbreviation", "a"), Verdict::Text);
        assert_eq!(look(b"<html><svg></svg></html>", "a.html"), Verdict::Text);
        assert!(matches!(look(b"a\0b", "a.txt"), Verdict::Unsupported(_)));
        assert!(matches!(look(b"caf\xe9 latin", "a.txt"), Verdict::Unsupported(_)));
    }

    #[test]
    fn numbers_lead_back() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(Kind::from_number(8), None);
    }
}
