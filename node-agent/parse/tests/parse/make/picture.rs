//! Pictures of the usual formats.

use std::io::Cursor;

use image::{DynamicImage, GrayImage, ImageFormat, RgbImage};

/// What [`upright`] shows: a bright block of 8 × 8 at the left above on a dark sheet of 32 × 24.
pub(crate) const BRIGHT: u8 = 240;
pub(crate) const DARK: u8 = 16;

/// A picture that looks different from all eight sides: 32 × 24, see [`BRIGHT`].
pub(crate) fn upright() -> GrayImage {
    GrayImage::from_fn(32, 24, |x, y| image::Luma([if x < 8 && y < 8 { BRIGHT } else { DARK }]))
}

/// The same in colour, 40 × 30: red at the left, blue at the right.
pub(crate) fn colours() -> RgbImage {
    RgbImage::from_fn(40, 30, |x, _| image::Rgb(if x < 20 { [200, 10, 20] } else { [10, 20, 200] }))
}

pub(crate) fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut image = image.into();
    if format == ImageFormat::Gif {
        // Its encoder makes the palette of colours only.
        image = image.into_rgb8().into();
    }
    image.write_to(&mut Cursor::new(&mut bytes), format).expect("a vector takes all");
    bytes
}

/// A chunk of a PNG with its checksum.
pub(crate) fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut crc = u32::MAX;
    for byte in name.iter().chain(body) {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
    }
    [&(body.len() as u32).to_be_bytes(), name.as_slice(), body, &(!crc).to_be_bytes()].concat()
}

/// A PNG of nothing but chunks.
pub(crate) fn png(chunks: &[Vec<u8>]) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
}

/// The header of an eight-bit grey PNG.
pub(crate) fn header(width: u32, height: u32) -> Vec<u8> {
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 0, 0, 0, 0]].concat())
}

/// Puts a chunk right behind the header of a PNG.
pub(crate) fn with_chunk(png: &[u8], chunk: &[u8]) -> Vec<u8> {
    [&png[..33], chunk, &png[33..]].concat()
}

/// A JPEG with an EXIF block that says how it lies, and 300 dots per inch.
pub(crate) fn with_exif(jpeg: &[u8], orientation: u16) -> Vec<u8> {
    let mut block = b"Exif\0\0II*\0\x08\0\0\0\x03\0".to_vec();
    let mut entry = |tag: u16, kind: u16, value: u32| {
        block.extend(tag.to_le_bytes());
        block.extend(kind.to_le_bytes());
        block.extend(1_u32.to_le_bytes());
        block.extend(value.to_le_bytes());
    };
    entry(274, 3, orientation.into());
    entry(282, 5, 50);
    entry(296, 3, 2);
    block.extend([0; 4]);
    block.extend(300_u32.to_le_bytes());
    block.extend(1_u32.to_le_bytes());
    let mut marker = vec![0xff, 0xe1];
    marker.extend((block.len() as u16 + 2).to_be_bytes());
    // In place of the JFIF segment, which says nothing about resolution here.
    let rest = if jpeg[3] == 0xe0 { 4 + usize::from(u16::from_be_bytes([jpeg[4], jpeg[5]])) } else { 2 };
    [&jpeg[..2], &marker, &block, &jpeg[rest..]].concat()
}
