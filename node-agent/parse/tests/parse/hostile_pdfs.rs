//! PDF files made to hurt: each ends with an error or a bounded page, and the host goes on.

use std::time::Duration;

use image::ImageFormat;
use ingle_parse::{Content, ErrorKind, Host, Limits, Page, ParseError};

use crate::make::pdf::{self, document, object, stream, text};
use crate::make::{deflated_zeros, picture};
use crate::{host, host_with, open, words};

/// Little memory and little processor time, so that bombs burst soon; much time on the wall, for slow machines.
fn narrow() -> Host {
    host_with(Limits {
        memory_bytes: 400 << 20,
        cpu_s: 4,
        children_max: 1,
        open: Duration::from_secs(300),
        page: Duration::from_secs(300),
        ..Limits::default()
    })
}

fn first(host: &Host, bytes: &[u8]) -> Result<Page, ParseError> {
    host.open(bytes, "test.pdf")?.page(0, 72.0)
}

fn still_works(host: &Host) {
    let good = document(&[pdf::Page { content: text(&["Still here."]), ..pdf::Page::default() }]);
    assert_eq!(words(first(host, &good).expect("the next document is read")).plain(), "Still here.\n");
}

fn refused(bytes: &[u8]) -> ErrorKind {
    let host = narrow();
    let error = first(&host, bytes).expect_err("hostile");
    assert!(error.message.len() > 10, "a sentence: {error}");
    still_works(&host);
    error.kind
}

/// What comes of it is of no interest but that it comes, and in bounds.
fn survived(bytes: &[u8]) -> Result<Page, ErrorKind> {
    let host = narrow();
    let outcome = first(&host, bytes);
    still_works(&host);
    outcome.map_err(|error| {
        assert!(error.blames_document(), "{error}");
        error.kind
    })
}

fn simple(content: &str, objects: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    document(&[pdf::Page { content: content.into(), objects, ..pdf::Page::default() }])
}

fn xobject(more: &str, bytes: &[u8]) -> Vec<u8> {
    stream(&format!("/Type /XObject {more}"), bytes)
}

#[test]
fn not_a_pdf_at_all() {
    assert_eq!(refused(b"%PDF-1.7\nand then nothing of the kind"), ErrorKind::Malformed);
    let noise: Vec<u8> = (0..40_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert_eq!(refused(&[b"%PDF-1.4\n".as_slice(), &noise].concat()), ErrorKind::Malformed);
}

#[test]
fn no_pages() {
    let empty =
        pdf::file(&[object("<< /Type /Catalog /Pages 2 0 R >>"), object("<< /Type /Pages /Kids [] /Count 0 >>")]);
    assert_eq!(refused(&empty), ErrorKind::Malformed);
    assert_eq!(refused(&pdf::file(&[object("<< /Type /Catalog >>")])), ErrorKind::Malformed);
}

#[test]
fn what_was_cut_off_on_its_way_is_called_so() {
    let whole = document(&[pdf::Page { content: text(&["Only the beginning came."]), ..pdf::Page::default() }]);
    let host = narrow();
    let mut refused = 0;
    for kept in (1..10).map(|tenth| whole.len() * tenth / 10).chain([64]) {
        // Where a page was found it is read: that is no reason to complain.
        if let Err(error) = host.open(&whole[..kept], "test.pdf") {
            refused += 1;
            assert!(error.message.contains("cut off or damaged"), "{kept} of {}: {error}", whole.len());
        }
    }
    assert!(refused > 0, "of 64 bytes there is no page to read");
    still_works(&host);
}

#[test]
fn tables_of_objects_that_lead_in_a_circle() {
    let mut file = document(&[pdf::Page { content: text(&["In a circle"]), ..pdf::Page::default() }]);
    let start = file.windows(5).rposition(|window| window == b"xref\n").expect("a table");
    let text = String::from_utf8_lossy(&file).into_owned();
    let circle = text.replace("/Root 1 0 R", &format!("/Root 1 0 R /Prev {start}"));
    file = circle.into_bytes();
    let page = survived(&file).expect("it is readable all the same");
    assert_eq!(words(page).plain(), "In a circle\n");
}

#[test]
fn a_form_that_draws_itself() {
    // The form is object 4: the first XObject of the first page.
    let form = xobject(
        "/Subtype /Form /BBox [0 0 595 842] /Resources << /XObject << /Me 4 0 R >> /Font << /F 3 0 R >> >>",
        b"BT /F 12 Tf 72 700 Td (Again) Tj ET /Me Do /Me Do",
    );
    let kind = survived(&simple("/Me Do", vec![("Me".into(), form)]));
    assert!(matches!(kind, Ok(_) | Err(ErrorKind::TimedOut | ErrorKind::Malformed)), "{kind:?}");
}

#[test]
fn forms_that_multiply() {
    assert_eq!(refused(&multiplying()), ErrorKind::TimedOut, "ten forms of ten forms of ten forms");
}

/// A page whose forms draw ten others each, thirty levels deep.
pub(crate) fn multiplying() -> Vec<u8> {
    let mut objects = vec![
        object("<< /Type /Catalog /Pages 2 0 R >>"),
        object("<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 595 842] >>"),
        object("<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /XObject << /X 5 0 R >> >> >>"),
        stream("", b"/X Do"),
    ];
    for level in 0..30 {
        let next = objects.len() + 2;
        let resources = if level == 29 { String::new() } else { format!("/X {next} 0 R") };
        let more = format!("/Subtype /Form /BBox [0 0 595 842] /Resources << /XObject << {resources} >> >>");
        objects.push(xobject(&more, "/X Do ".repeat(10).as_bytes()));
    }
    pdf::file(&objects)
}

#[test]
fn content_that_unpacks_to_gigabytes() {
    let objects = [
        object("<< /Type /Catalog /Pages 2 0 R >>"),
        object("<< /Type /Pages /Kids [3 0 R] /Count 1 /MediaBox [0 0 595 842] >>"),
        object("<< /Type /Page /Parent 2 0 R /Contents 4 0 R >>"),
        stream("/Filter /FlateDecode", &deflated_zeros(2_000 << 20)),
    ];
    assert_eq!(refused(&pdf::file(&objects)), ErrorKind::OutOfMemory);
}

#[test]
fn a_million_pages() {
    let kids = "<<>>".repeat(1_000_000);
    let objects = [
        object("<< /Type /Catalog /Pages 2 0 R >>"),
        object(&format!("<< /Type /Pages /Kids [{kids}] /Count 1000000 /MediaBox [0 0 595 842] >>")),
    ];
    let kind = refused(&pdf::file(&objects));
    assert!(matches!(kind, ErrorKind::TooLarge | ErrorKind::OutOfMemory | ErrorKind::TimedOut), "{kind:?}");
    let claimed = document(&[pdf::Page::default()]);
    let claimed = String::from_utf8_lossy(&claimed).replace("/Count 1 ", "/Count 1000000 ").into_bytes();
    assert_eq!(open(&claimed).pages(), 1, "what it says isn't what it has");
}

#[test]
fn a_page_of_a_thousand_kilometres() {
    let content = format!("{} 0 0 1000000 1000000 re f", text(&["Small"]));
    let page = pdf::Page { content, more: "/MediaBox [0 0 1000000 1000000]".into(), ..pdf::Page::default() };
    let host = host();
    let mut opened = host.open(&document(&[page]), "test").expect("it opens");
    let page = opened.page(0, 300.0).expect("a page within bounds");
    assert!(
        page.width <= 20_000 && page.height <= 20_000 && u64::from(page.width) * u64::from(page.height) <= 64 << 20
    );
    assert!(page.dpi < 1.0, "{}", page.dpi);
    let strip = pdf::Page {
        more: "/MediaBox [0 0 1000000 0.001]".into(),
        content: "0 0 9 9 re f".into(),
        ..pdf::Page::default()
    };
    drop(opened);
    let page = host.open(&document(&[strip]), "test").expect("it opens").page(0, 300.0).expect("a page within bounds");
    assert!(page.width <= 20_000 && page.height >= 1);
}

#[test]
fn boxes_without_sense() {
    for media in ["[0 0 0 0]", "[9 9 1 1]", "[0 0 1e38 1e38]", "[-1e30 -1e30 1e30 1e30]", "[0 0 nan 5]", "[]", "7"] {
        let page = pdf::Page { more: format!("/MediaBox {media}"), content: text(&["x"]), ..pdf::Page::default() };
        match survived(&document(&[page])) {
            Ok(page) => assert!((1..=20_000).contains(&page.width) && (1..=20_000).contains(&page.height), "{media}"),
            Err(kind) => assert!(matches!(kind, ErrorKind::Malformed | ErrorKind::TooLarge), "{media}: {kind:?}"),
        }
    }
}

#[test]
fn a_jbig2_picture_that_claims_four_thousand_million_pixels() {
    let mut coded = Vec::new();
    let mut segment = |number: u32, kind: u8, body: &[u8]| {
        coded.extend(number.to_be_bytes());
        coded.extend([kind, 0, 1]);
        coded.extend((body.len() as u32).to_be_bytes());
        coded.extend(body);
    };
    let side = 65_535_u32.to_be_bytes();
    segment(0, 48, &[&side[..], &side, &[0; 8], &[0, 0, 0]].concat());
    let region = [&side[..], &side, &[0; 9], &[0], &[3, 0xff, 0xfd, 0xff, 2, 0xfe, 0xfe, 0xfe], &[0x5a; 64]].concat();
    segment(1, 38, &region);
    let more =
        "/Subtype /Image /Width 65535 /Height 65535 /ColorSpace /DeviceGray /BitsPerComponent 1 /Filter /JBIG2Decode";
    let outcome = survived(&simple("q 500 0 0 500 0 0 cm /I Do Q", vec![("I".into(), xobject(more, &coded))]));
    let kind = outcome.expect_err("nothing that is a page");
    assert!(matches!(kind, ErrorKind::OutOfMemory | ErrorKind::Malformed | ErrorKind::TimedOut), "{kind:?}");
}

#[test]
fn a_jpeg_2000_picture_that_claims_too_much() {
    let mut coded = b"\xff\x4f\xff\x51\0\x29\0\0".to_vec();
    for number in [60_000_u32, 60_000, 0, 0, 60_000, 60_000, 0, 0] {
        coded.extend(number.to_be_bytes());
    }
    coded.extend(b"\0\x01\x07\x01\x01\xff\x52\0\x0c\0\0\0\x01\0\x05\x04\x04\0\0");
    coded.extend(b"\xff\x5c\0\x13\x40\x40\x48\x48\x50\x48\x48\x50\x48\x48\x50\x48\x48\x50\x48\x48\x50");
    coded.extend(b"\xff\x90\0\x0a\0\0\0\0\0\0\0\x01\xff\x93\xff\xd9");
    let more =
        "/Subtype /Image /Width 60000 /Height 60000 /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /JPXDecode";
    let outcome = survived(&simple("q 500 0 0 500 0 0 cm /I Do Q", vec![("I".into(), xobject(more, &coded))]));
    let kind = outcome.expect_err("nothing that is a page");
    assert!(matches!(kind, ErrorKind::OutOfMemory | ErrorKind::Malformed | ErrorKind::TimedOut), "{kind:?}");
}

#[test]
fn a_picture_larger_than_any_memory() {
    let more = "/Subtype /Image /Width 4000000000 /Height 4000000000 /ColorSpace /DeviceRGB /BitsPerComponent 8";
    let outcome = survived(&simple("q 500 0 0 500 0 0 cm /I Do Q", vec![("I".into(), xobject(more, b"few bytes"))]));
    if let Ok(page) = outcome {
        assert!(page.width <= 20_000);
    }
}

#[test]
fn brackets_without_end() {
    let deep = "[".repeat(200_000);
    assert!(survived(&simple(&format!("{deep} 0 Tw"), Vec::new())).is_ok_and(|page| page.width > 0));
    let nested = format!("<< /Type /Catalog /Pages 2 0 R /X {} >>", "<< /A ".repeat(100_000));
    let kind = survived(&pdf::file(&[object(&nested), object("<< /Type /Pages /Kids [] /Count 0 >>")]));
    assert!(kind.is_err(), "{kind:?}");
}

#[test]
fn truncated_and_bent_files() {
    let jpeg = picture::encoded(picture::upright(), ImageFormat::Jpeg);
    let pages = [
        pdf::Page { content: text(&["A page of text", "with two lines"]), ..pdf::Page::default() },
        pdf::scan(&jpeg, 32, 24, ""),
    ];
    let whole = document(&pages);
    let host = narrow();
    let mut seed = 0x2545_f491_u32;
    for round in 0..120_usize {
        let mut bent = whole.clone();
        if round % 4 == 0 {
            bent.truncate(20 + round * (whole.len() - 20) / 120);
        } else {
            for _ in 0..1 + round % 5 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = seed as usize % bent.len();
                bent[at] = (seed >> 24) as u8;
            }
        }
        let Ok(mut opened) = host.open(&bent, "bent.pdf") else { continue };
        for index in 0..opened.pages().min(3) {
            match opened.page(index, 72.0) {
                Ok(Page { content: Content::Pixels(image), .. }) => assert!(image.width <= 20_000),
                Ok(_) => {}
                Err(error) => assert_ne!(error.kind, ErrorKind::Unavailable, "round {round}: {error}"),
            }
        }
    }
    still_works(&host);
}
