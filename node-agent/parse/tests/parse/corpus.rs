//! Files made by other programs, kept in `tests/corpus`; `make.py` there says how.

use std::path::Path;

use ingle_engine::PageImage;
use ingle_parse::{ErrorKind, Kind};

use crate::{host, open, pixels, words};

const PLAIN: &str = "Plain old type, without anything special.";

fn file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A page's pixels at a resolution so high that nothing is shrunk.
fn page(name: &str, index: u32) -> PageImage {
    pixels(open(&file(name)).page(index, 1_200.0).unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// Mean difference of samples.
fn difference(one: &PageImage, other: &PageImage) -> f64 {
    assert_eq!((one.width, one.height, one.channels), (other.width, other.height, other.channels));
    let sum: u64 = one.pixels.iter().zip(&other.pixels[..]).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / one.pixels.len() as f64
}

#[test]
fn every_fax_coding_gives_the_same_page() {
    let plain = page("fax.png", 0);
    assert_eq!((plain.width, plain.height, plain.channels), (240, 120, 1));
    assert!(plain.pixels.contains(&0) && plain.pixels.contains(&255));
    for name in ["fax-mh.tif", "fax-g3.tif", "fax-g4.tif", "fax-two.tif"] {
        assert_eq!(page(name, 0), plain, "{name}");
    }
    let mut two = open(&file("fax-two.tif"));
    assert_eq!(two.pages(), 2);
    let negative = pixels(two.page(1, 200.0).expect("the second page"));
    assert!(negative.pixels.iter().zip(&plain.pixels[..]).all(|(a, b)| a ^ b == 255));
    // 240 × 120 samples at 100 to the inch: drawn at the same, only its edges may be softer.
    let drawn = pixels(open(&file("fax.pdf")).page(0, 100.0).expect("a page"));
    assert!(difference(&drawn, &plain) < 3.0, "{}", difference(&drawn, &plain));
}

#[test]
fn colours_survive_every_coding() {
    let plain = page("picture.png", 0);
    assert_eq!((plain.width, plain.height, plain.channels), (64, 48, 3));
    for (name, kind, most) in [
        ("picture.jp2", Kind::Jpeg2000, 0.0),
        ("picture.j2k", Kind::Jpeg2000, 0.0),
        ("picture.webp", Kind::WebP, 8.0),
        ("picture-progressive.jpg", Kind::Jpeg, 8.0),
        ("picture-cmyk.jpg", Kind::Jpeg, 8.0),
        ("picture-jpeg.tif", Kind::Tiff, 8.0),
    ] {
        let mut document = open(&file(name));
        assert_eq!((document.kind(), document.pages()), (kind, 1), "{name}");
        let found = difference(&pixels(document.page(0, 1_200.0).expect(name)), &plain);
        assert!(found <= most, "{name}: {found}");
    }
    let drawn = pixels(open(&file("picture-jpx.pdf")).page(0, 72.0).expect("a page"));
    assert!(difference(&drawn, &plain) < 3.0, "{}", difference(&drawn, &plain));
    let page = open(&file("picture.png")).page(0, 300.0).expect("a page");
    assert!((page.dpi - 300.0).abs() < 0.1, "{}", page.dpi);
}

#[test]
fn embedded_type_reads_as_it_was_written() {
    for name in ["report.pdf", "report-streams.pdf"] {
        let mut document = open(&file(name));
        assert_eq!(document.pages(), 2, "{name}");
        let first = words(document.page(0, 200.0).expect("the first page")).plain();
        let expected = "Erste Seite\nÜbung macht den Meister, sagte der Bäcker,\nund buk noch fünf Brötchen für 3,50 Euro.\n\
                        L’été déjà fini, voilà tout ce qu’il dit.\nThe office kept its files flat and affixed.\n";
        assert_eq!(first, expected, "{name}");
        let second = words(document.page(1, 200.0).expect("the second page")).plain();
        assert_eq!(second, format!("Zweite Seite\n{PLAIN}\n{PLAIN}\n{PLAIN}\n"), "{name}");
    }
}

#[test]
fn encryption_opens_with_an_empty_password_only() {
    for name in ["encrypted-rc4.pdf", "encrypted-aes128.pdf", "encrypted-aes256.pdf"] {
        let page = open(&file(name)).page(0, 200.0).expect(name);
        assert!(words(page).plain().contains(PLAIN), "{name}");
    }
    let error = host().open(&file("encrypted-password.pdf"), "a.pdf").expect_err("a password");
    assert_eq!(error.kind, ErrorKind::Encrypted);
    assert!(error.message.contains("password"), "{error}");
}
