//! Good TIFF files: pages, codings, colours.

use ingle_parse::Kind;
use tiff::encoder::colortype::{Gray8, RGB8, RGBA8};
use tiff::encoder::{Compression, DeflateLevel, TiffEncoder};

use crate::make::tiff::{LONG, RATIONAL, SHORT, basic, file, group_4};
use crate::{only_page, open, pixels};

#[test]
fn all_pages_are_read_whatever_their_coding() {
    let codings = [
        Compression::Uncompressed,
        Compression::Lzw,
        Compression::Deflate(DeflateLevel::Balanced),
        Compression::Packbits,
    ];
    let mut bytes = std::io::Cursor::new(Vec::new());
    let grey: Vec<u8> = (0..=255).collect();
    let colour: Vec<u8> = (0..=255).flat_map(|sample| [sample, 0, 255 - sample]).collect();
    for (number, coding) in codings.into_iter().enumerate() {
        let mut encoder = TiffEncoder::new(&mut bytes).expect("a vector").with_compression(coding);
        encoder.write_image::<Gray8>(16, 16, &grey).expect("a vector");
        encoder.write_image::<RGB8>(16, 16, &colour).expect("a vector");
        encoder.write_image::<RGBA8>(1, 1, &[0, 0, 0, 0]).expect("a vector");
        let mut document = open(bytes.get_ref());
        assert_eq!((document.kind(), document.pages()), (Kind::Tiff, 3), "coding {number}");
        let image = pixels(document.page(1, 200.0).expect("colour"));
        assert_eq!((image.channels, &image.pixels[..]), (3, &colour[..]), "coding {number}");
        let image = pixels(document.page(0, 200.0).expect("grey"));
        assert_eq!((image.channels, &image.pixels[..]), (1, &grey[..]), "coding {number}");
        assert_eq!(pixels(document.page(2, 200.0).expect("clear")).pixels[..], [255]);
        bytes = std::io::Cursor::new(Vec::new());
    }
}

#[test]
fn group_4_faxes() {
    let black: Vec<bool> = (0..64 * 40).map(|at| (at % 64 / 5 + at / 64 / 3) % 2 == 0).collect();
    let expected: Vec<u8> = black.iter().map(|black| if *black { 0 } else { 255 }).collect();
    let coded = group_4(&black, 64);
    let mirrored: Vec<u8> = coded.iter().map(|byte| byte.reverse_bits()).collect();
    let mut back_to_front = basic(64, 40, 1, 4, 0);
    back_to_front.push((266, SHORT, vec![2]));
    let swapped = basic(64, 40, 1, 4, 1);
    let mut coarse = basic(64, 40, 1, 4, 0);
    coarse.extend([(282, RATIONAL, vec![204, 1]), (283, RATIONAL, vec![98, 1]), (296, SHORT, vec![2])]);
    let pages =
        [(basic(64, 40, 1, 4, 0), coded.clone()), (back_to_front, mirrored), (swapped, coded.clone()), (coarse, coded)];
    let mut document = open(&file(&pages, 0));
    assert_eq!(document.pages(), 4);
    let mut of = |index: u32| pixels(document.page(index, 200.0).expect("a fax"));
    assert_eq!(of(0).pixels[..], expected);
    assert_eq!(of(1).pixels[..], expected, "the least bit first");
    let negative: Vec<u8> = expected.iter().map(|sample| 255 - sample).collect();
    assert_eq!(of(2).pixels[..], negative, "black is zero");
    assert_eq!((of(3).width, of(3).height), (64, 80), "rows half as dense as columns");
}

#[test]
fn bits_palettes_and_planes() {
    let mut palette = basic(4, 1, 8, 1, 3);
    let map: Vec<u32> = (0..768).map(|at| if at % 256 == 1 && at < 256 { 0xffff } else { 0 }).collect();
    palette.push((320, SHORT, map));
    let mut planes = basic(2, 1, 8, 1, 2);
    planes[2] = (258, SHORT, vec![8, 8, 8]);
    planes.extend([(277, SHORT, vec![3]), (284, SHORT, vec![2])]);
    let planes: Vec<_> = planes.into_iter().filter(|(tag, ..)| *tag != 278).chain([(278, LONG, vec![1])]).collect();
    let mut inks = basic(1, 1, 8, 1, 5);
    inks[2] = (258, SHORT, vec![8, 8, 8, 8]);
    inks.push((277, SHORT, vec![4]));
    let mut lying = basic(3, 2, 8, 1, 1);
    lying.push((274, SHORT, vec![6]));
    let pages = [
        (basic(10, 2, 1, 1, 1), vec![0b1111_1111, 0b0100_0000, 0, 0b1000_0000]),
        (basic(10, 1, 1, 1, 0), vec![0b1111_1111, 0b0100_0000]),
        (basic(2, 1, 16, 1, 1), vec![0, 0, 0xff, 0xff]),
        (palette, vec![0, 1, 1, 0]),
        (inks, vec![0, 255, 255, 0]),
        (lying, vec![1, 2, 3, 4, 5, 6]),
    ];
    let mut document = open(&file(&pages, 0));
    let mut of = |index: u32| pixels(document.page(index, 200.0).expect("a page"));
    assert_eq!(of(0).pixels[..], [255, 255, 255, 255, 255, 255, 255, 255, 0, 255, 0, 0, 0, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!(of(1).pixels[..], [0, 0, 0, 0, 0, 0, 0, 0, 255, 0]);
    assert_eq!(of(2).pixels[..], [0, 255]);
    assert_eq!(of(3).pixels[..], [0, 0, 0, 255, 0, 0, 255, 0, 0, 0, 0, 0]);
    assert_eq!(of(4).pixels[..], [255, 0, 0]);
    let turned = of(5);
    assert_eq!((turned.width, turned.height, &turned.pixels[..]), (2, 3, &[4, 1, 5, 2, 6, 3][..]));
    drop(document);
    // One strip for each plane: told with two offsets too few here, which is an error and not a crash.
    assert!(only_page(&file(&[(planes, vec![1, 2, 3, 4, 5, 6])], 0)).is_err());
}

#[test]
fn a_broken_page_costs_only_itself() {
    let odd = basic(4, 4, 8, 34_712, 1);
    let pages = [(basic(2, 1, 8, 1, 1), vec![1, 2]), (odd, vec![0; 16]), (basic(2, 1, 8, 1, 1), vec![3, 4])];
    let mut document = open(&file(&pages, 0));
    assert_eq!(pixels(document.page(0, 200.0).expect("good")).pixels[..], [1, 2]);
    let error = document.page(1, 200.0).expect_err("JPEG 2000 in TIFF");
    assert!(matches!(error.kind, ingle_parse::ErrorKind::Unsupported(_)), "{error:?}");
    assert_eq!(pixels(document.page(2, 200.0).expect("good")).pixels[..], [3, 4]);
}
