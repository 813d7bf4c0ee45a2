//! Fax-coded strips of a TIFF: Modified Huffman, Group 3 and Group 4 (ITU-T T.4 and T.6; TIFF 6.0, sections 10 and 11).

use hayro_ccitt::{DecodeSettings, Decoder, DecoderContext, EncodingMode};

/// How a strip is coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coding {
    /// TIFF's `Compression`: 2, 3 or 4.
    pub(super) compression: u16,
    /// `T4Options`: bit 0 two-dimensional, bit 2 fill bits before an end of line.
    pub(super) options: u32,
    /// `FillOrder` 2: the least bit of a byte comes first.
    pub(super) reversed: bool,
    /// Black and white as eight-bit samples.
    pub(super) black: u8,
    pub(super) white: u8,
}

/// Decodes one strip of `columns` × `rows` pixels to the end of `pixels`. A strip that breaks off leaves the rest white, as fax
/// machines do.
pub(super) fn decode(strip: &[u8], columns: u32, rows: u32, coding: Coding, pixels: &mut Vec<u8>) {
    let reversed: Vec<u8>;
    let strip = if coding.reversed {
        reversed = strip.iter().map(|byte| byte.reverse_bits()).collect();
        &reversed
    } else {
        strip
    };
    let end = pixels.len() + columns as usize * rows as usize;
    let encoding = match (coding.compression, coding.options & 1) {
        (4, _) => EncodingMode::Group4,
        (3, 1) => EncodingMode::Group3_2D,
        _ => EncodingMode::Group3_1D,
    };
    let settings = DecodeSettings {
        columns,
        rows,
        end_of_block: coding.compression != 2,
        end_of_line: coding.compression == 3,
        rows_are_byte_aligned: coding.compression == 2,
        encoding,
        strict: false,
    };
    let mut rows = Rows { pixels, columns: columns as usize, end, black: coding.black, white: coding.white };
    // Rows that came before an error count; what is missing is filled below.
    let _ = hayro_ccitt::decode(strip, &mut rows, &mut DecoderContext::new(settings));
    pixels.resize(end, coding.white);
}

struct Rows<'a> {
    pixels: &'a mut Vec<u8>,
    columns: usize,
    end: usize,
    black: u8,
    white: u8,
}

impl Decoder for Rows<'_> {
    fn push_row(&mut self, changes: &[u32]) {
        let start = self.pixels.len();
        if start + self.columns > self.end {
            return;
        }
        self.pixels.resize(start + self.columns, self.white);
        let row = &mut self.pixels[start..];
        for span in changes.chunks(2) {
            let from = (span[0] as usize).min(self.columns);
            let to = span.get(1).map_or(self.columns, |to| *to as usize).clamp(from, self.columns);
            row[from..to].fill(self.black);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP_4: Coding = Coding { compression: 4, options: 0, reversed: false, black: 0, white: 255 };

    /// A pattern that no two rows share.
    fn pattern(columns: u16, rows: u16) -> Vec<bool> {
        (0..rows).flat_map(|y| (0..columns).map(move |x| (x / 3 + y) % 5 == 0 || x == y)).collect()
    }

    fn group_4(columns: u16, rows: u16) -> Vec<u8> {
        let mut encoder = fax::encoder::Encoder::new(fax::VecWriter::new());
        for row in pattern(columns, rows).chunks(usize::from(columns)) {
            let line = row.iter().map(|black| if *black { fax::Color::Black } else { fax::Color::White });
            encoder.encode_line(line, columns).expect("a vector takes all");
        }
        encoder.finish().expect("a vector takes all").finish()
    }

    #[test]
    fn group_4_comes_back() {
        let (columns, rows) = (50, 9);
        let expected: Vec<u8> = pattern(columns, rows).iter().map(|black| if *black { 0 } else { 255 }).collect();
        let coded = group_4(columns, rows);
        let mut pixels = vec![1, 2];
        decode(&coded, 50, 9, GROUP_4, &mut pixels);
        assert_eq!(pixels[..2], [1, 2]);
        assert_eq!(pixels[2..], expected);
        let mirrored: Vec<u8> = coded.iter().map(|byte| byte.reverse_bits()).collect();
        let mut pixels = Vec::new();
        decode(&mirrored, 50, 9, Coding { reversed: true, ..GROUP_4 }, &mut pixels);
        assert_eq!(pixels, expected);
    }

    #[test]
    fn what_is_missing_is_white() {
        let coded = group_4(50, 9);
        let mut pixels = Vec::new();
        decode(&coded[..coded.len() / 2], 50, 9, GROUP_4, &mut pixels);
        assert_eq!(pixels.len(), 450);
        let mut pixels = Vec::new();
        decode(&[], 8, 2, GROUP_4, &mut pixels);
        assert_eq!(pixels, [255; 16]);
        let mut pixels = Vec::new();
        decode(&[0xff; 64], 8, 2, Coding { compression: 3, options: 1, ..GROUP_4 }, &mut pixels);
        assert_eq!(pixels.len(), 16);
    }
}
