//! TIFF files from tags, little-endian, one strip a page.

/// A tag with its values; those of type 5 (rational) are numerator and denominator in turn.
pub(crate) type Entry = (u16, u16, Vec<u32>);

/// A page: its tags without `StripOffsets` and `StripByteCounts`, and its strip.
pub(crate) type Page = (Vec<Entry>, Vec<u8>);

pub(crate) const SHORT: u16 = 3;
pub(crate) const LONG: u16 = 4;
pub(crate) const RATIONAL: u16 = 5;

/// Tags that every page needs.
pub(crate) fn basic(width: u32, height: u32, bits: u32, compression: u32, photometric: u32) -> Vec<Entry> {
    vec![
        (256, LONG, vec![width]),
        (257, LONG, vec![height]),
        (258, SHORT, vec![bits]),
        (259, SHORT, vec![compression]),
        (262, SHORT, vec![photometric]),
        (278, LONG, vec![height]),
    ]
}

/// A file of these pages; the last one leads to `after`, 0 for nowhere.
pub(crate) fn file(pages: &[Page], after: u32) -> Vec<u8> {
    let mut file = b"II*\0\0\0\0\0".to_vec();
    let mut link = 4;
    for (entries, strip) in pages {
        let strip_at = file.len() as u32;
        file.extend(strip);
        let mut entries = entries.clone();
        entries.push((273, LONG, vec![strip_at]));
        entries.push((279, LONG, vec![strip.len() as u32]));
        entries.sort();
        let mut values: Vec<(u16, u16, u32, [u8; 4])> = Vec::new();
        for (tag, kind, numbers) in entries {
            let bytes: Vec<u8> = match kind {
                SHORT => numbers.iter().flat_map(|number| (*number as u16).to_le_bytes()).collect(),
                _ => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            };
            let count = if kind == RATIONAL { numbers.len() / 2 } else { numbers.len() } as u32;
            let mut inline = [0; 4];
            if bytes.len() <= 4 {
                inline[..bytes.len()].copy_from_slice(&bytes);
            } else {
                inline = (file.len() as u32).to_le_bytes();
                file.extend(bytes);
            }
            values.push((tag, kind, count, inline));
        }
        let directory = file.len() as u32;
        file[link..link + 4].copy_from_slice(&directory.to_le_bytes());
        file.extend((values.len() as u16).to_le_bytes());
        for (tag, kind, count, inline) in values {
            file.extend(tag.to_le_bytes());
            file.extend(kind.to_le_bytes());
            file.extend(count.to_le_bytes());
            file.extend(inline);
        }
        link = file.len();
        file.extend(after.to_le_bytes());
    }
    file
}

/// A strip in Group 4, `black` for each pixel.
pub(crate) fn group_4(black: &[bool], columns: u16) -> Vec<u8> {
    let mut encoder = fax::encoder::Encoder::new(fax::VecWriter::new());
    for row in black.chunks(usize::from(columns)) {
        let line = row.iter().map(|black| if *black { fax::Color::Black } else { fax::Color::White });
        encoder.encode_line(line, columns).expect("a vector takes all");
    }
    encoder.finish().expect("a vector takes all").finish()
}
