//! Good pictures of every format, and how they are turned, weighed and flattened.

use image::{DynamicImage, ImageFormat};
use ingle_parse::Kind;

use crate::make::picture::{BRIGHT, DARK, chunk, colours, encoded, upright, with_chunk, with_exif};
use crate::{grey_at, only_page, open, pixels};

#[test]
fn every_format_is_read() {
    let formats = [
        (ImageFormat::Png, Kind::Png, 0),
        (ImageFormat::Jpeg, Kind::Jpeg, 30),
        (ImageFormat::WebP, Kind::WebP, 0),
        (ImageFormat::Gif, Kind::Gif, 8),
        (ImageFormat::Bmp, Kind::Bmp, 0),
    ];
    for (format, kind, tolerance) in formats {
        let mut document = open(&encoded(colours(), format));
        assert_eq!((document.kind(), document.pages()), (kind, 1));
        let image = pixels(document.page(0, 200.0).expect("a page"));
        assert_eq!((image.width, image.height, image.channels), (40, 30, 3), "{format:?}");
        let at = |x: usize| &image.pixels[(15 * 40 + x) * 3..][..3];
        for (found, expected) in [(at(5), [200, 10, 20]), (at(35), [10, 20, 200])] {
            let far = found.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
            assert!(far <= Some(tolerance), "{format:?}: {found:?} for {expected:?}");
        }
    }
}

#[test]
fn exif_says_how_a_picture_lies() {
    // How a camera stores the upright picture under each orientation.
    let stored: [fn(DynamicImage) -> DynamicImage; 8] = [
        |image| image,
        |image| image.fliph(),
        |image| image.rotate180(),
        |image| image.flipv(),
        |image| image.rotate90().fliph(),
        |image| image.rotate270(),
        |image| image.rotate270().fliph(),
        |image| image.rotate90(),
    ];
    for (orientation, store) in (1..).zip(stored) {
        let jpeg = encoded(store(upright().into()), ImageFormat::Jpeg);
        let page = only_page(&with_exif(&jpeg, orientation)).expect("a page");
        assert_eq!(page.dpi, 300.0);
        let image = pixels(page);
        assert_eq!((image.width, image.height), (32, 24), "orientation {orientation}");
        let places = [(3, 3, BRIGHT), (28, 3, DARK), (3, 20, DARK), (28, 20, DARK)];
        for (x, y, expected) in places {
            let found = grey_at(&image, x, y);
            assert!(found.abs_diff(expected) < 30, "orientation {orientation}: {found} at {x}, {y}");
        }
    }
}

#[test]
fn alpha_stands_on_white_and_sixteen_bits_become_eight() {
    let half = image::RgbaImage::from_fn(4, 1, |x, _| image::Rgba([0, 0, 0, x as u8 * 85]));
    let image = pixels(only_page(&encoded(half, ImageFormat::Png)).expect("a page"));
    assert_eq!((image.channels, &image.pixels[..]), (1, &[255, 170, 85, 0][..]));
    let deep = image::ImageBuffer::<image::Luma<u16>, _>::from_fn(3, 1, |x, _| image::Luma([x as u16 * 32_767]));
    let image = pixels(only_page(&encoded(deep, ImageFormat::Png)).expect("a page"));
    assert_eq!(&image.pixels[..], [0, 127, 255]);
}

#[test]
fn resolution_comes_from_metadata_where_it_can_be() {
    let physical =
        |per_metre: u32| chunk(b"pHYs", &[&per_metre.to_be_bytes()[..], &per_metre.to_be_bytes(), &[1]].concat());
    let png = encoded(image::GrayImage::new(600, 400), ImageFormat::Png);
    let page = only_page(&with_chunk(&png, &physical(7_874))).expect("a page");
    assert!((page.dpi - 200.0).abs() < 0.01, "{}", page.dpi);
    let page = only_page(&with_chunk(&png, &physical(15_748))).expect("a page");
    assert_eq!((page.width, page.height), (300, 200), "twice as fine as asked for");
    assert!((page.dpi - 200.0).abs() < 0.01, "{}", page.dpi);
    assert_eq!(only_page(&with_chunk(&png, &physical(3))).expect("a page").dpi, 0.0);
    assert_eq!(only_page(&png).expect("a page").dpi, 0.0);
}

#[test]
fn one_pixel_is_a_page() {
    let image = pixels(only_page(&encoded(image::GrayImage::new(1, 1), ImageFormat::Png)).expect("a page"));
    assert_eq!((image.width, image.height, &image.pixels[..]), (1, 1, &[0][..]));
}
