//! EXIF and TIFF orientation: how a picture lies against how it is looked at (TIFF 6.0, tag 274).

use super::raster::Raster;

/// Turns and mirrors so that row 0 is above and column 0 left. `orientation` is the tag's value; other values than 2 to 8 mean
/// that it lies right.
pub(super) fn upright(raster: Raster, orientation: u16) -> Raster {
    let (width, height) = (raster.width as usize, raster.height as usize);
    // From a place in the result (column, row) to one in the source.
    let source: fn(usize, usize, usize, usize) -> (usize, usize) = match orientation {
        2 => |x, y, w, _| (w - 1 - x, y),
        3 => |x, y, w, h| (w - 1 - x, h - 1 - y),
        4 => |x, y, _, h| (x, h - 1 - y),
        5 => |x, y, _, _| (y, x),
        6 => |x, y, _, h| (y, h - 1 - x),
        7 => |x, y, w, h| (w - 1 - y, h - 1 - x),
        8 => |x, y, w, _| (w - 1 - y, x),
        _ => return raster,
    };
    let (wide, tall) = if orientation >= 5 { (height, width) } else { (width, height) };
    let channels = usize::from(raster.channels);
    let mut pixels = Vec::with_capacity(raster.pixels.len());
    for y in 0..tall {
        for x in 0..wide {
            let (column, row) = source(x, y, width, height);
            let at = (row * width + column) * channels;
            pixels.extend_from_slice(&raster.pixels[at..at + channels]);
        }
    }
    Raster { width: wide as u32, height: tall as u32, channels: raster.channels, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_eight() {
        // Upright, the letter is
        //   1 2 3
        //   4 5 6
        // and each entry is how the tag says that it was stored.
        let stored: [(u16, u32, u32, [u8; 6]); 8] = [
            (1, 3, 2, [1, 2, 3, 4, 5, 6]),
            (2, 3, 2, [3, 2, 1, 6, 5, 4]),
            (3, 3, 2, [6, 5, 4, 3, 2, 1]),
            (4, 3, 2, [4, 5, 6, 1, 2, 3]),
            (5, 2, 3, [1, 4, 2, 5, 3, 6]),
            (6, 2, 3, [3, 6, 2, 5, 1, 4]),
            (7, 2, 3, [6, 3, 5, 2, 4, 1]),
            (8, 2, 3, [4, 1, 5, 2, 6, 3]),
        ];
        for (orientation, width, height, pixels) in stored {
            let raster = Raster { width, height, channels: 1, pixels: pixels.to_vec() };
            let right = Raster { width: 3, height: 2, channels: 1, pixels: vec![1, 2, 3, 4, 5, 6] };
            assert_eq!(upright(raster, orientation), right, "orientation {orientation}");
        }
        let odd = Raster { width: 1, height: 2, channels: 3, pixels: vec![1, 2, 3, 4, 5, 6] };
        assert_eq!(upright(odd.clone(), 77), odd);
        assert_eq!(upright(odd, 6).pixels, [4, 5, 6, 1, 2, 3]);
    }
}
