//! Documents with pages, made by hand: pictures whose grey rows spell their text for the engine of tests, and PDFs with text.

use std::fmt::Write as _;

/// Columns of a picture: the longest line it can spell.
const WIDTH: usize = 120;

/// Grey pixels, a row per line and a blank one at the end.
fn rows(lines: &[&str]) -> Vec<Vec<u8>> {
    let row = |line: &str| {
        assert!(line.len() <= WIDTH, "{line:?} is longer than {WIDTH}");
        let mut row = line.as_bytes().to_vec();
        row.resize(WIDTH, 0);
        row
    };
    lines.iter().copied().map(row).chain([vec![0; WIDTH]]).collect()
}

/// A grey PNG that spells these lines.
#[must_use]
pub fn png(lines: &[&str]) -> Vec<u8> {
    let rows = rows(lines);
    let mut header = Vec::new();
    header.extend((WIDTH as u32).to_be_bytes());
    header.extend((rows.len() as u32).to_be_bytes());
    header.extend([8, 0, 0, 0, 0]);
    // A zero before each row: no filter.
    let raw: Vec<u8> = rows.iter().flat_map(|row| [0].into_iter().chain(row.iter().copied())).collect();
    let mut bytes = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", stored(&raw)), (b"IEND", Vec::new())] {
        bytes.extend((data.len() as u32).to_be_bytes());
        let from = bytes.len();
        bytes.extend(kind);
        bytes.extend(data);
        let sum = crc32(&bytes[from..]);
        bytes.extend(sum.to_be_bytes());
    }
    bytes
}

/// A PNG's head that claims to be this large, and nothing behind it.
#[must_use]
pub fn huge_png(side: u32) -> Vec<u8> {
    let mut bytes = png(&["x"]);
    bytes[16..20].copy_from_slice(&side.to_be_bytes());
    bytes[20..24].copy_from_slice(&side.to_be_bytes());
    let sum = crc32(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An uncompressed grey TIFF, a page per list of lines.
#[must_use]
pub fn tiff(pages: &[Vec<&str>]) -> Vec<u8> {
    let mut bytes = b"II*\0".to_vec();
    let mut link = bytes.len();
    bytes.extend([0; 4]);
    for page in pages {
        let rows = rows(page);
        let strip = bytes.len() as u32;
        bytes.extend(rows.iter().flatten());
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        let directory = (bytes.len() as u32).to_le_bytes();
        bytes[link..link + 4].copy_from_slice(&directory);
        let (width, height) = (WIDTH as u32, rows.len() as u32);
        // Tag, type (3 short, 4 long), value.
        let entries: [(u16, u16, u32); 9] = [
            (256, 4, width),
            (257, 4, height),
            (258, 3, 8),
            (259, 3, 1),
            (262, 3, 1),
            (273, 4, strip),
            (277, 3, 1),
            (278, 4, height),
            (279, 4, width * height),
        ];
        bytes.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, value) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        link = bytes.len();
        bytes.extend([0; 4]);
    }
    bytes
}

/// A PDF with text of its own, a page per list of lines. A page without lines holds a picture instead: a scan.
#[must_use]
pub fn pdf(pages: &[Vec<&str>]) -> Vec<u8> {
    let mut objects: Vec<String> = vec!["<< /Type /Catalog /Pages 2 0 R >>".into(), String::new()];
    objects.push("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".into());
    let mut kids = String::new();
    for lines in pages {
        let mut content = String::new();
        if lines.is_empty() {
            // An inline picture, black, as large as the page.
            content.push_str("q 400 0 0 500 0 0 cm BI /W 4 /H 4 /CS /G /BPC 8 ID ");
            content.push_str(&"\0".repeat(16));
            content.push_str("\nEI Q");
        } else {
            content.push_str("BT /F1 12 Tf 14 TL 50 450 Td\n");
            for line in lines {
                assert!(!line.contains(['(', ')', '\\']), "plain text only");
                let _ = writeln!(content, "({line}) Tj T*");
            }
            content.push_str("ET");
        }
        objects.push(format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()));
        objects.push(format!(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 400 500] /Contents {} 0 R /Resources << /Font << /F1 3 0 R >> >> >>",
            objects.len()
        ));
        let _ = write!(kids, "{} 0 R ", objects.len());
    }
    objects[1] = format!("<< /Type /Pages /Count {} /Kids [{kids}] >>", pages.len());
    assembled(&objects)
}

/// A PDF of these objects, numbered from 1; the first is the catalogue.
fn assembled(objects: &[String]) -> Vec<u8> {
    let mut text = String::from("%PDF-1.4\n");
    let mut places = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        places.push(text.len());
        let _ = write!(text, "{} 0 obj\n{object}\nendobj\n", index + 1);
    }
    let table = text.len();
    let _ = write!(text, "xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
    for place in places {
        let _ = writeln!(text, "{place:010} 00000 n ");
    }
    let _ = write!(text, "trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n", objects.len() + 1);
    text.into_bytes()
}

/// A password that nobody knows locks it; made by another program.
const LOCKED: &[u8] = include_bytes!("../../node-agent/parse/tests/corpus/encrypted-password.pdf");

/// Ten documents that nobody can read, each with its name and the code of its end. One of them ends the process that
/// parses it.
#[must_use]
pub fn hostile() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let whole = pdf(&[vec!["never seen"]]);
    let mut wide = tiff(&[vec!["x"]]);
    let claim = [0, 1, 4, 0, 1, 0, 0, 0];
    let at = wide.windows(8).position(|window| window == claim).expect("the width's entry") + 8;
    wide[at..at + 4].copy_from_slice(&100_000_u32.to_le_bytes());
    wide[at + 12..at + 16].copy_from_slice(&100_000_u32.to_le_bytes());
    let pages = "<< /Type /Pages /Kids [] /Count 0 >>".to_owned();
    let deep = format!("<< /Type /Catalog /Pages 2 0 R /X {} >>", "<< /A ".repeat(100_000));
    vec![
        ("huge.png", huge_png(100_000), "TOO_LARGE"),
        ("wide.tif", wide, "DOCUMENT_MALFORMED"),
        ("torn.pdf", whole[..40].to_vec(), "DOCUMENT_MALFORMED"),
        ("torn.png", png(&["x"])[..40].to_vec(), "DOCUMENT_MALFORMED"),
        ("headless.tif", b"II*\0\x08\0\0\0".to_vec(), "DOCUMENT_MALFORMED"),
        ("locked.pdf", LOCKED.to_vec(), "DOCUMENT_MALFORMED"),
        ("deep.pdf", assembled(&[deep, pages]), "DOCUMENT_MALFORMED"),
        ("program.tif", b"MZ\x90\0 not a picture at all\0\0".to_vec(), "DOCUMENT_KIND"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(), "DOCUMENT_KIND"),
        ("empty.pdf", Vec::new(), "DOCUMENT_KIND"),
    ]
}

/// A zlib stream that compresses nothing.
fn stored(raw: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = raw.chunks(0xffff).collect();
    for (index, block) in blocks.iter().enumerate() {
        bytes.push(u8::from(index + 1 == blocks.len()));
        bytes.extend((block.len() as u16).to_le_bytes());
        bytes.extend((!(block.len() as u16)).to_le_bytes());
        bytes.extend(*block);
    }
    let (mut a, mut b) = (1u32, 0u32);
    for byte in raw {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    bytes.extend(((b << 16) | a).to_be_bytes());
    bytes
}

/// CRC-32 as PNG has it (ISO 3309), bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg()))
    })
}
