//! Pictures made to hurt: each ends with an error or a bounded page, and the host goes on.

use image::ImageFormat;
use ingle_parse::{ErrorKind, Host, ParseError};

use crate::make::deflated_zeros;
use crate::make::picture::{chunk, encoded, header, png, upright, with_chunk};
use crate::make::tiff::{basic, file};
use crate::{host, pixels};

/// Opens the first page, if it comes to that.
fn first(host: &Host, bytes: &[u8]) -> Result<ingle_parse::Page, ParseError> {
    host.open(bytes, "test")?.page(0, 200.0)
}

/// The kind of error that a file gives, with the host still good for another file.
fn refused(bytes: &[u8]) -> ErrorKind {
    let host = host();
    let error = first(&host, bytes).expect_err("hostile");
    assert!(error.message.len() > 10, "a sentence: {error}");
    let good = encoded(upright(), ImageFormat::Png);
    pixels(first(&host, &good).expect("the next document is read"));
    assert!(host.children() <= 1);
    error.kind
}

#[test]
fn a_tiny_png_that_claims_ten_thousand_million_pixels() {
    let mut bomb =
        png(&[header(100_000, 100_000), chunk(b"IDAT", &[0x78, 0x9c, 3, 0, 0, 0, 0, 1]), chunk(b"IEND", &[])]);
    bomb.truncate(65);
    assert_eq!(bomb.len(), 65);
    assert_eq!(refused(&bomb), ErrorKind::TooLarge);
}

#[test]
fn compressed_text_that_unpacks_to_a_gigabyte_is_never_unpacked() {
    let text = [b"Comment\0\0".to_vec(), deflated_zeros(1 << 30)].concat();
    let bomb = with_chunk(&encoded(upright(), ImageFormat::Png), &chunk(b"zTXt", &text));
    let page = first(&host(), &bomb).expect("the picture itself is good");
    assert_eq!((page.width, page.height), (32, 24));
}

#[test]
fn pixels_that_unpack_to_more_than_they_should() {
    let bomb = png(&[header(10, 10), chunk(b"IDAT", &deflated_zeros(1 << 30)), chunk(b"IEND", &[])]);
    let page = first(&host(), &bomb).expect("what is too much is left");
    assert_eq!((page.width, page.height), (10, 10));
}

#[test]
fn directories_in_a_circle() {
    let page = (basic(2, 1, 8, 1, 1), vec![7, 8]);
    let single = file(std::slice::from_ref(&page), 0);
    let first_directory = u32::from_le_bytes(single[4..8].try_into().expect("four bytes"));
    let circle = file(&[page.clone(), page.clone()], first_directory);
    let mut document = host().open(&circle, "test").expect("its two pages");
    assert_eq!(document.pages(), 2);
    assert_eq!(pixels(document.page(1, 200.0).expect("a page")).pixels[..], [7, 8]);
}

#[test]
fn tiff_sizes_that_cannot_be() {
    let claims = |width: u32, height: u32| file(&[(basic(width, height, 8, 1, 1), vec![0; 16])], 0);
    assert_eq!(refused(&claims(100_000, 100_000)), ErrorKind::TooLarge);
    assert_eq!(refused(&claims(u32::MAX, u32::MAX)), ErrorKind::TooLarge);
    assert_eq!(refused(&claims(0, 0)), ErrorKind::Malformed);
    assert_eq!(refused(&claims(14_000, 14_000)), ErrorKind::Malformed, "a strip that is missing");
    let mut faxed = basic(60_000, 3_000, 1, 4, 0);
    faxed.retain(|(tag, ..)| *tag != 278);
    let image = pixels(first(&host(), &file(&[(faxed, vec![0; 4])], 0)).expect("white paper"));
    assert_eq!((image.width, image.height), (20_000, 1_000), "shrunk to the bounds");
    assert_eq!(refused(b"II*\0\x08\0\0\0"), ErrorKind::Malformed, "no directory at all");
}

#[test]
fn one_pixel() {
    let dot = image::GrayImage::from_pixel(1, 1, image::Luma([90]));
    for format in [ImageFormat::Png, ImageFormat::Gif, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg] {
        let image = pixels(first(&host(), &encoded(dot.clone(), format)).expect("a page"));
        assert_eq!((image.width, image.height), (1, 1), "{format:?}");
    }
}

#[test]
fn no_pixels_at_all() {
    assert_eq!(refused(&png(&[header(0, 0), chunk(b"IEND", &[])])), ErrorKind::Malformed);
    let mut gif = encoded(upright(), ImageFormat::Gif);
    gif[6..10].fill(0);
    let outcome = first(&host(), &gif);
    assert!(outcome.is_err() || outcome.is_ok_and(|page| page.width >= 1), "refused, or bounded");
}

#[test]
fn truncated_files() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        let whole = encoded(upright(), format);
        let host = host();
        for cut in [12, whole.len() / 4, whole.len() / 2, whole.len() - 3] {
            match first(&host, &whole[..cut]) {
                Ok(page) => assert_eq!((page.width, page.height), (32, 24), "{format:?} cut at {cut}"),
                Err(error) => assert!(
                    matches!(error.kind, ErrorKind::Malformed | ErrorKind::Unsupported(_) | ErrorKind::TooLarge),
                    "{format:?} cut at {cut}: {error:?}"
                ),
            }
        }
        assert!(first(&host, &whole[..12]).is_err(), "{format:?} of 12 bytes");
    }
}

#[test]
fn bytes_turned_over_one_by_one() {
    let mut seed = 0x9e37_79b9_u32;
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif, ImageFormat::Bmp] {
        let whole = encoded(upright(), format);
        let host = host();
        for _ in 0..40 {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut bent = whole.clone();
            let at = seed as usize % bent.len();
            bent[at] ^= (seed >> 24) as u8 | 1;
            // Whatever comes, it came in bounds: the host checks, and says if it was not so.
            if let Err(error) = first(&host, &bent) {
                assert_ne!(error.kind, ErrorKind::Crashed { signal: 0 }, "{format:?}, byte {at}: {error}");
                assert_ne!(error.kind, ErrorKind::Unavailable, "{format:?}, byte {at}: {error}");
            }
        }
    }
}

#[test]
fn two_formats_in_one_file() {
    let both = [encoded(upright(), ImageFormat::Png), b"\n%PDF-1.4\n%%EOF".to_vec()].concat();
    let mut document = host().open(&both, "both.pdf").expect("what stands first");
    assert_eq!(document.kind(), ingle_parse::Kind::Png);
    assert_eq!(pixels(document.page(0, 200.0).expect("a page")).width, 32);
}

#[test]
fn what_is_not_read_is_named() {
    let named = |bytes: &[u8], name: &str| match host().open(bytes, name).expect_err(name).kind {
        ErrorKind::Unsupported(what) => what,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(named(b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "a.svg"), "SVG drawing");
    assert_eq!(named(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "a.heic"), "HEIC picture");
    assert_eq!(named(b"PK\x03\x04", "a.docx"), "Word document");
    assert_eq!(named(b"Just words.\n", "a.txt"), "plain text");
    assert_eq!(named(b"", "a.pdf"), "empty file");
}

#[test]
fn a_jpeg_2000_that_claims_everything() {
    let mut bomb = b"\xff\x4f\xff\x51\0\x29\0\0".to_vec();
    for number in [u32::MAX, u32::MAX, 0, 0, u32::MAX, u32::MAX, 0, 0] {
        bomb.extend(number.to_be_bytes());
    }
    bomb.extend(b"\0\x01\x07\x01\x01");
    bomb.extend(b"\xff\x52\0\x0c\0\0\0\x01\0\x05\x04\x04\0\0");
    bomb.extend(b"\xff\x5c\0\x13\x40\x40\x48\x48\x50\x48\x48\x50\x48\x48\x50\x48\x48\x50\x48\x48\x50");
    bomb.extend(b"\xff\x90\0\x0a\0\0\0\0\0\0\0\x01\xff\x93\xff\xd9");
    let kind = refused(&bomb);
    assert!(matches!(kind, ErrorKind::TooLarge | ErrorKind::Malformed), "{kind:?}");
}
