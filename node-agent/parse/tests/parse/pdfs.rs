//! Good PDF files: their own words, their scans, and which of both a page is.

use image::ImageFormat;
use ingle_parse::{Content, Kind};

use crate::make::pdf::{Page, document, scan, stream, text};
use crate::make::picture::{encoded, upright};
use crate::{only_page, open, pixels, words};

const PROSE: [&str; 4] = [
    "It was the best of times, it was the worst of times,",
    "it was the age of wisdom, it was the age of foolishness,",
    "it was the epoch of belief, it was the epoch of incredulity,",
    "it was the season of Light, it was the season of Darkness.",
];

fn page(content: String) -> Page {
    Page { content, ..Page::default() }
}

/// A page of 170 × 240 samples, dark letters on white as noise.
fn paper() -> Vec<u8> {
    let sheet =
        image::GrayImage::from_fn(170, 240, |x, y| image::Luma([if (x / 3 + y / 5) % 4 == 0 { 20 } else { 250 }]));
    encoded(sheet, ImageFormat::Jpeg)
}

#[test]
fn a_pages_own_words_with_their_places() {
    let page = only_page(&document(&[page(text(&PROSE))])).expect("a page");
    // A4 at 200 dpi.
    assert_eq!((page.width, page.height, page.dpi), (1_652, 2_338, 200.0));
    let found = words(page);
    assert_eq!(found.plain(), PROSE.map(|line| format!("{line}\n")).concat());
    let first = &found.lines[0];
    let [begin, end, _, below] = first.corners;
    let scale = 200.0 / 72.0;
    // 72 points from the left; the baseline is 72 points below the upper edge, and type of 12 points stands on it.
    assert!((begin[0] - 72.0 * scale).abs() < 1.0, "{begin:?}");
    assert!(below[1] > 72.0 * scale && below[1] < 76.0 * scale, "{below:?}");
    assert!(begin[1] > 60.0 * scale && begin[1] < 66.0 * scale, "{begin:?}");
    // By Helvetica's published widths the line is 260.77 points long.
    assert!((end[0] - begin[0] - 260.77 * scale).abs() < 0.5, "{}", (end[0] - begin[0]) / scale);
    let [was, next] = [&first.words[1], &first.words[2]];
    assert_eq!((was.text.as_str(), next.text.as_str()), ("was", "the"));
    assert!(was.corners[1][0] < next.corners[0][0], "words stand beside each other");
    assert!(found.lines[1].corners[0][1] > first.corners[0][1], "lines below each other");
}

#[test]
fn the_same_place_at_any_resolution() {
    let mut document = open(&document(&[page(text(&PROSE))]));
    let place = |page: ingle_parse::Page| {
        let dpi = page.dpi;
        words(page).lines[2].words[3].corners.map(|[x, y]| [x / dpi, y / dpi])
    };
    let coarse = place(document.page(0, 100.0).expect("a page"));
    let fine = place(document.page(0, 300.0).expect("a page"));
    for (a, b) in coarse.as_flattened().iter().zip(fine.as_flattened()) {
        assert!((a - b).abs() < 0.01, "{coarse:?} and {fine:?}");
    }
}

#[test]
fn scans_are_pixels_and_pages_are_judged_one_by_one() {
    let jpeg = paper();
    let number = "BT /F 10 Tf 290 20 Td (17) Tj ET";
    let pages = [
        page(text(&PROSE)),
        scan(&jpeg, 170, 240, ""),
        scan(&jpeg, 170, 240, number),
        page(String::new()),
        page(text(&["Annual Report"])),
    ];
    let mut document = open(&document(&pages));
    assert_eq!((document.kind(), document.pages()), (Kind::Pdf, 5));
    let mut is_text = |index: u32| matches!(document.page(index, 100.0).expect("a page").content, Content::Text(_));
    assert_eq!([0, 1, 2, 3, 4].map(&mut is_text), [true, false, false, true, true]);
    let scanned = pixels(document.page(1, 100.0).expect("a page"));
    assert_eq!((scanned.width, scanned.height, scanned.channels), (826, 1_169, 1));
    assert!(scanned.pixels.iter().filter(|sample| **sample < 60).count() > 50_000, "its dark strokes are there");
    assert!(scanned.pixels.iter().filter(|sample| **sample > 200).count() > 500_000, "on white paper");
    assert_eq!(words(document.page(3, 100.0).expect("a page")).plain(), "", "nothing is on it");
}

#[test]
fn somebodys_ocr_is_taken_where_it_reads_like_words() {
    let jpeg = paper();
    let hidden = |lines: &[&str]| text(lines).replace("BT ", "BT 3 Tr ");
    let many: Vec<&str> = PROSE.iter().cycle().take(20).copied().collect();
    let good = only_page(&document(&[scan(&jpeg, 170, 240, &hidden(&many))])).expect("a page");
    assert_eq!(words(good).lines.len(), 20);
    let junk = ["1t vvas tbe b3st 0f t|mes; i+ w@s t#e w0rst ~f tImEs"; 20];
    pixels(only_page(&document(&[scan(&jpeg, 170, 240, &hidden(&junk))])).expect("a page"));
    // Text that the scan was painted over is as hidden.
    let mut under = scan(&jpeg, 170, 240, "");
    under.content = format!("{}{}", text(&junk), under.content);
    pixels(only_page(&document(&[under])).expect("a page"));
}

#[test]
fn words_are_parted_without_blanks_and_joined_across_pieces() {
    let content = "BT /F 12 Tf 72 700 Td [(Kern) 20 (ed) -300 (let) 15 (ters)] TJ ET\n\
                   BT /F 12 Tf 72 680 Td (bold) Tj ET BT /F 12 Tf 72.3 680 Td (bold) Tj ET\n\
                   BT /F 12 Tf 72 660 Td 2 Tr (both) Tj 0 Tr ET";
    let found = words(only_page(&document(&[page(content.into())])).expect("a page"));
    assert_eq!(found.plain(), "Kerned letters\nbold\nboth\n");
}

#[test]
fn turned_pages_and_what_is_cut_away() {
    let mut turned = page(text(&PROSE));
    turned.more = "/Rotate 90".into();
    let page_found = only_page(&document(&[turned])).expect("a page");
    assert_eq!((page_found.width, page_found.height), (2_338, 1_652));
    let first = words(page_found).lines[0].clone();
    // Read from above to below, at the right edge.
    assert!(first.corners[1][1] > first.corners[0][1] + 500.0, "{:?}", first.corners);
    assert!(first.corners[0][0] > 2_000.0, "{:?}", first.corners);
    let mut cut = page(format!("{}BT /F 12 Tf 10 10 Td (outside) Tj ET", text(&PROSE)));
    cut.more = "/CropBox [50 400 595 842]".into();
    let page_found = only_page(&document(&[cut])).expect("a page");
    assert_eq!(page_found.height, (442.0 * 200.0 / 72.0) as u32);
    assert!(!words(page_found).plain().contains("outside"));
    let clipped = format!("q 0 500 595 342 re W n {} BT /F 12 Tf 72 100 Td (clipped) Tj ET Q", text(&PROSE));
    assert!(!words(only_page(&document(&[page(clipped)])).expect("a page")).plain().contains("clipped"));
}

#[test]
fn colours_stay_where_there_are_any() {
    let jpeg = encoded(crate::make::picture::colours(), ImageFormat::Jpeg);
    let mut coloured = scan(&jpeg, 40, 30, "");
    coloured.objects[0].1 = stream(
        "/Type /XObject /Subtype /Image /Width 40 /Height 30 /ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /DCTDecode",
        &jpeg,
    );
    let image = pixels(only_page(&document(&[coloured])).expect("a page"));
    assert_eq!(image.channels, 3);
    let left = &image.pixels[(1_000 * image.width as usize + 100) * 3..][..3];
    assert!(left[0] > 150 && left[2] < 80, "red at the left: {left:?}");
}

#[test]
fn text_drawn_as_shapes_is_read_from_pixels() {
    let letter = "0 0 m 3 9 5 9 8 0 c 6 4 4 4 2 0 c h 1 1 m 2 2 3 3 4 1 c h f\n";
    let shapes: String =
        (0..2_000).map(|at| format!("q 1 0 0 1 {} {} cm {letter}Q\n", 60 + at % 50 * 9, 780 - at / 50 * 16)).collect();
    pixels(only_page(&document(&[page(format!("{shapes}BT /F 10 Tf 290 20 Td (17) Tj ET"))])).expect("a page"));
}

#[test]
fn pictures_that_cannot_be_decoded_are_errors_not_empty_pages() {
    let mut broken = scan(b"\xff\xd8 no jpeg", 170, 240, "");
    let error = only_page(&document(&[broken.clone()])).expect_err("nothing to read");
    assert!(error.message.contains("can't be decoded"), "{error}");
    // With text on it there is something to read.
    broken.content += &text(&PROSE);
    broken.content = broken.content.replace("595 0 0 842", "59 0 0 84");
    assert!(only_page(&document(&[broken])).is_ok());
    let small = encoded(upright(), ImageFormat::Jpeg);
    assert!(only_page(&document(&[scan(&small, 32, 24, "")])).is_ok());
}

#[test]
fn long_documents_do_not_fill_the_child() {
    // Forty pages of four million bytes each, most of it blanks, in a child that could never keep them all.
    let heavy = format!("{}{}", " ".repeat(4 << 20), text(&PROSE));
    let pages: Vec<Page> = (0..40).map(|_| page(heavy.clone())).collect();
    let limits = ingle_parse::Limits {
        memory_bytes: 420 << 20,
        children_max: 1,
        open: std::time::Duration::from_secs(300),
        page: std::time::Duration::from_secs(300),
        ..ingle_parse::Limits::default()
    };
    let host = crate::host_with(limits);
    let mut opened = host.open(&document(&pages), "long.pdf").expect("opens");
    for index in 0..40 {
        assert_eq!(words(opened.page(index, 72.0).expect("a page")).lines.len(), PROSE.len(), "page {index}");
    }
}

#[test]
fn pictures_within_the_content_in_every_text_coding() {
    // Four samples: black and white above, white and black below.
    for picture in [
        "BI /W 2 /H 2 /CS /G /BPC 8 /F /AHx ID 00FFFF00> EI",
        "BI /W 2 /H 2 /CS /G /BPC 8 /F /AHx ID\n00ff\nff00\n>\nEI",
        "BI /W 2 /H 2 /CS /G /BPC 8 /F [/AHx] ID 00FFFF00 EI",
        "BI /Width 2 /Height 2 /ColorSpace /DeviceGray /BitsPerComponent 8 /Filter /ASCIIHexDecode ID 00FFFF00>\nEI",
        "BI /W 2 /H 2 /CS /G /BPC 8 /F /A85 ID !<<'!~>\nEI",
    ] {
        let content = format!("q 595 0 0 842 0 0 cm\n{picture}\nQ\n");
        let image = pixels(only_page(&document(&[page(content)])).expect("a page"));
        let channels = u32::from(image.channels);
        let at = |x: u32, y: u32| {
            image.pixels[((y * image.height / 4 * image.width + x * image.width / 4) * channels) as usize]
        };
        assert!(at(1, 1) < 20 && at(3, 1) > 235 && at(1, 3) > 235 && at(3, 3) < 20, "{picture}");
    }
}
