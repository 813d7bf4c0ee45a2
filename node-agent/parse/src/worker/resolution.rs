//! Pixels per inch, as a picture's metadata claims it, where the claim is plausible.

/// A number of chunks or segments beyond which nobody looks further.
const STEPS_MAX: usize = 1_000;
const METRES_PER_INCH: f32 = 0.0254;
const INCHES_PER_CM: f32 = 2.54;

/// The claim, or 0 where a page of that size can't be meant. Cameras write 72 or 96 without meaning it: below 100 dpi the
/// longer side must be at most two feet, above at most 100 inches.
pub(super) fn plausible(dpi: f32, width: u32, height: u32) -> f32 {
    let inches = width.max(height) as f32 / dpi;
    let most = if dpi < 100.0 { 24.0 } else { 100.0 };
    if (50.0..=2_400.0).contains(&dpi) && inches <= most { dpi } else { 0.0 }
}

/// The `pHYs` chunk of a PNG (PNG specification, 11.3.4.3), which stands before the pixels.
pub(super) fn of_png(bytes: &[u8]) -> Option<f32> {
    let mut rest = bytes.get(8..)?;
    for _ in 0..STEPS_MAX {
        let length = u32::from_be_bytes(rest.get(..4)?.try_into().ok()?) as usize;
        let name = rest.get(4..8)?;
        let body = rest.get(8..8_usize.checked_add(length)?)?;
        match (name, body) {
            (b"pHYs", [a, b, c, d, _, _, _, _, 1]) => {
                return Some(u32::from_be_bytes([*a, *b, *c, *d]) as f32 * METRES_PER_INCH);
            }
            (b"pHYs" | b"IDAT" | b"IEND", _) => return None,
            _ => rest = rest.get(12 + length..)?,
        }
    }
    None
}

/// The JFIF segment of a JPEG (ITU-T T.871, 10.1).
pub(super) fn of_jpeg(bytes: &[u8]) -> Option<f32> {
    let mut rest = bytes.get(2..)?;
    for _ in 0..STEPS_MAX {
        let [0xff, marker, high, low, body @ ..] = rest else { return None };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let body = body.get(..length.checked_sub(2)?)?;
        match (marker, body) {
            (0xe0, [b'J', b'F', b'I', b'F', 0, _, _, unit, x_high, x_low, ..]) => {
                let density = f32::from(u16::from_be_bytes([*x_high, *x_low]));
                return match unit {
                    1 => Some(density),
                    2 => Some(density * INCHES_PER_CM),
                    _ => None,
                };
            }
            // Start of scan: the pixels.
            (0xda, _) => return None,
            _ => rest = rest.get(2 + length..)?,
        }
    }
    None
}

/// Pixels per metre in a BMP's header (BITMAPINFOHEADER and later).
pub(super) fn of_bmp(bytes: &[u8]) -> Option<f32> {
    let header = u32::from_le_bytes(bytes.get(14..18)?.try_into().ok()?);
    let per_metre = i32::from_le_bytes(bytes.get(38..42)?.try_into().ok()?);
    (header >= 40 && per_metre > 0).then_some(per_metre as f32 * METRES_PER_INCH)
}

/// `XResolution` and `ResolutionUnit` of an EXIF block, which is a TIFF directory (EXIF 2.3, 4.6.4).
pub(super) fn of_exif(block: &[u8]) -> Option<f32> {
    let little = match block.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let two = |at: usize| -> Option<u16> {
        let bytes = block.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let four = |at: usize| -> Option<u32> {
        let bytes = block.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    };
    let start = four(4)? as usize;
    let (mut density, mut unit) = (None, 2);
    for entry in 0..usize::from(two(start)?) {
        let at = start.checked_add(2 + entry * 12)?;
        match (two(at)?, two(at + 2)?) {
            (0x011a, 5) => {
                let value = four(at + 8)? as usize;
                let (over, under) = (four(value)?, four(value.checked_add(4)?)?);
                density = (under > 0).then(|| over as f32 / under as f32);
            }
            (0x0128, 3) => unit = two(at + 8)?,
            _ => {}
        }
    }
    match unit {
        2 => density,
        3 => Some(density? * INCHES_PER_CM),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_weighed() {
        assert_eq!(plausible(300.0, 2_480, 3_508), 300.0, "A4");
        assert_eq!(plausible(72.0, 595, 842), 72.0, "A4 at screen resolution");
        assert_eq!(plausible(72.0, 4_000, 3_000), 0.0, "a phone's picture");
        assert_eq!(plausible(0.0, 10, 10), 0.0);
        assert_eq!(plausible(f32::NAN, 10, 10), 0.0);
        assert_eq!(plausible(1e9, 10, 10), 0.0);
    }

    #[test]
    fn png_chunks() {
        let chunk = |name: &[u8], body: &[u8]| [&(body.len() as u32).to_be_bytes(), name, body, &[0; 4]].concat();
        let physical = chunk(b"pHYs", &[0, 0, 0x2e, 0x23, 0, 0, 0x2e, 0x23, 1]);
        let file = |parts: &[Vec<u8>]| [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat();
        let found = of_png(&file(&[chunk(b"IHDR", &[0; 13]), physical.clone()])).expect("a claim");
        assert!((found - 300.0).abs() < 0.1, "{found}");
        assert_eq!(of_png(&file(&[chunk(b"IDAT", &[]), physical.clone()])), None, "after the pixels");
        assert_eq!(of_png(&file(&[chunk(b"pHYs", &[0; 9])])), None, "without a unit");
        assert_eq!(of_png(&file(&[physical])[..20]), None, "cut");
        assert_eq!(of_png(&[]), None);
        let endless = [b"\x89PNG\r\n\x1a\n".as_slice(), &[0xff; 40]].concat();
        assert_eq!(of_png(&endless), None, "a length beyond the file");
    }

    #[test]
    fn jpeg_segments() {
        let jfif =
            |unit: u8| [b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01".as_slice(), &[unit, 0, 118, 0, 118, 0, 0]].concat();
        assert_eq!(of_jpeg(&jfif(1)), Some(118.0));
        assert!((of_jpeg(&jfif(2)).expect("per cm") - 299.72).abs() < 0.01);
        assert_eq!(of_jpeg(&jfif(0)), None);
        assert_eq!(of_jpeg(b"\xff\xd8\xff\xda\0\x02"), None);
        assert_eq!(of_jpeg(b"\xff\xd8\xff\xe1\0\x01"), None, "a length that can't be");
    }

    #[test]
    fn exif_directories() {
        let mut block = b"MM\0*\0\0\0\x08\0\x02".to_vec();
        block.extend(b"\x01\x1a\0\x05\0\0\0\x01\0\0\0\x26");
        block.extend(b"\x01\x28\0\x03\0\0\0\x01\0\x02\0\0");
        block.extend(b"\0\0\0\0");
        assert_eq!(block.len(), 0x26);
        block.extend(b"\0\0\x01\x2c\0\0\0\x01");
        assert_eq!(of_exif(&block), Some(300.0));
        for cut in 0..block.len() {
            assert_eq!(of_exif(&block[..cut]), None, "cut at {cut}");
        }
        let mut wild = block.clone();
        wild[4..8].fill(0xff);
        assert_eq!(of_exif(&wild), None, "a directory beyond the block");
        block[0x26 + 7] = 0;
        assert_eq!(of_exif(&block), None, "a division by zero");
    }
}
