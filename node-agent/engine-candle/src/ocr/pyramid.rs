//! 3×3 convolutions over sums of enlarged maps: what the detector's feature pyramid (PaddleOCR's `RSEFPN`) and its head are
//! made of, without ever making an enlarged map.
//!
//! A convolution is linear, so that over a sum it is the sum of convolutions over the parts. Over a map that nearest-neighbour
//! enlargement by r has made, a pixel sees at most two of the small map's rows and columns, and which ones depends on its place
//! within the square of r × r pixels alone: first, in the middle, or last. So each part is worked out on its small map, once
//! per such class with the filter's taps summed accordingly, and only the results are spread. Where a part is itself a 1×1
//! convolution with gains, that is multiplied into the filter. It is the same sum in another order, with a third of the
//! products.

use pulp::Simd;
use rayon::prelude::*;

use super::activation::Activation;
use super::conv::{Wide, give_scratch, take_scratch, wide};
use super::map::{Map, Maps, Shape, Slot};
use super::net::Layer;
use super::product::{Left, Packed, product};

/// Channels of the result: known to the compiler, which then spreads them in whole registers.
pub(crate) const OUTPUTS: usize = 24;

/// Taps along a side of the filter.
const SIZE: usize = 3;

/// Pixels that see the small map in the same way, along one axis.
struct Class {
    /// Whether the first small pixel seen is the one before the own.
    before: bool,
    /// For each small pixel seen, the taps that fall on it.
    taps: &'static [&'static [usize]],
}

const WHOLE: Class = Class { before: true, taps: &[&[0], &[1], &[2]] };
const FIRST: Class = Class { before: true, taps: &[&[0], &[1, 2]] };
const MIDDLE: Class = Class { before: false, taps: &[&[0, 1, 2]] };
const LAST: Class = Class { before: false, taps: &[&[0, 1], &[2]] };

/// The classes of an enlargement, in the order of their first pixels.
fn classes(rate: usize) -> &'static [Class] {
    match rate {
        1 => &[WHOLE],
        2 => &[FIRST, LAST],
        _ => &[FIRST, MIDDLE, LAST],
    }
}

/// Index of the class of a place within the enlarged pixel.
fn class_of(rate: usize, place: usize) -> usize {
    match (rate, place) {
        (_, 0) => 0,
        (2, _) => 1,
        (_, place) if place + 1 == rate => 2,
        _ => 1,
    }
}

/// One part of the sum.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Of one picture, with a border of 1.
    pub(crate) map: Slot,
    /// Factors per channel of the filter's input.
    pub(crate) gains: Slot,
    /// [outputs, inputs, 3, 3]
    pub(crate) filter: Vec<f32>,
    /// A 1×1 convolution without a bias, [inputs, channels], that lies between the map and the gains.
    pub(crate) inner: Option<Vec<f32>>,
}

/// The convolution over the sum of its parts. Each map has half the sides of the one before; the first has the result's.
#[derive(Debug, Clone)]
pub(crate) struct Pyramid {
    pub(crate) parts: Vec<Part>,
    pub(crate) bias: [f32; OUTPUTS],
    /// Whether negative results become zero.
    pub(crate) rectify: bool,
    pub(crate) target: Slot,
    /// Border of the result.
    pub(crate) border: usize,
}

/// A part with its filters for this picture.
struct Ready<'a> {
    map: &'a Map,
    rate: usize,
    /// [class down, class across]
    filters: Vec<Packed>,
}

impl Part {
    /// The filter with gains and inner convolution multiplied in: [3, 3, channels, outputs].
    fn compose(&self, gains: &[f32]) -> Vec<f32> {
        let inputs = gains.len();
        let channels = self.inner.as_ref().map_or(inputs, |inner| inner.len() / inputs);
        let mut composed = vec![0.0; SIZE * SIZE * channels * OUTPUTS];
        for (tap, composed) in composed.chunks_exact_mut(channels * OUTPUTS).enumerate() {
            let weight =
                |out: usize, input: usize| self.filter[(out * inputs + input) * SIZE * SIZE + tap] * gains[input];
            let Some(inner) = &self.inner else {
                for (at, value) in composed.iter_mut().enumerate() {
                    *value = weight(at % OUTPUTS, at / OUTPUTS);
                }
                continue;
            };
            let mut column = vec![0.0; OUTPUTS];
            for (input, inner) in inner.chunks_exact(channels).enumerate() {
                column.iter_mut().enumerate().for_each(|(out, value)| *value = weight(out, input));
                for (composed, inner) in composed.chunks_exact_mut(OUTPUTS).zip(inner) {
                    composed.iter_mut().zip(&column).for_each(|(value, weight)| *value += inner * weight);
                }
            }
        }
        composed
    }

    fn ready<'a>(&self, maps: &'a Maps, rate: usize, bias: &[f32; OUTPUTS]) -> Ready<'a> {
        let map = maps.get(self.map);
        let channels = map.shape.channels;
        let composed = self.compose(&maps.get(self.gains).values);
        let mut filters = Vec::new();
        for down in classes(rate) {
            for across in classes(rate) {
                // Rows of the right side: small rows, small columns, channels; each the sum of its taps.
                let sums: Vec<f32> = down
                    .taps
                    .iter()
                    .flat_map(|rows| across.taps.iter().map(move |columns| (rows, columns)))
                    .flat_map(|(rows, columns)| {
                        let mut sum = vec![0.0; channels * OUTPUTS];
                        for tap in rows.iter().flat_map(|row| columns.iter().map(move |column| row * SIZE + column)) {
                            let weights = &composed[tap * channels * OUTPUTS..][..channels * OUTPUTS];
                            sum.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += weight);
                        }
                        sum
                    })
                    .collect();
                filters.push(Packed::new(sums.len() / OUTPUTS, bias, |row, column| sums[row * OUTPUTS + column]));
            }
        }
        Ready { map, rate, filters }
    }
}

/// The rows of the result that lie under one row of the smallest map.
struct Group<'a> {
    layer: &'a Pyramid,
    parts: &'a [Ready<'a>],
    shape: Shape,
    /// Row of the smallest map.
    index: usize,
    /// Whole rows, with their borders.
    rows: &'a mut [f32],
}

impl Group<'_> {
    /// Row `y` of a part's map seen through one filter.
    #[inline(always)]
    fn row<S: Simd>(simd: S, part: &Ready<'_>, y: usize, (down, across): (usize, usize), out: &mut [f32]) {
        let classes = classes(part.rate);
        let (rows, columns) = (&classes[down], &classes[across]);
        let shape = part.map.shape;
        let begin =
            shape.at(0, y) - usize::from(rows.before) * shape.row() - usize::from(columns.before) * shape.channels;
        let segments = [begin, begin + shape.row(), begin + 2 * shape.row()];
        let left = Left {
            values: &part.map.values,
            stride: shape.channels,
            segments: &segments[..rows.taps.len()],
            length: columns.taps.len() * shape.channels,
        };
        product(simd, left, &part.filters[down * classes.len() + across], Activation::None, out);
    }
}

/// Adds what the small pixels of a row gave, [classes, width, OUTPUTS], to the pixels that see them.
#[inline(always)]
fn spread(seen: &[f32], rate: usize, out: &mut [f32]) {
    let (seen, _) = seen.as_chunks::<OUTPUTS>();
    let (out, _) = out.as_chunks_mut::<OUTPUTS>();
    let width = out.len() / rate;
    for (x, out) in out.chunks_exact_mut(rate).enumerate() {
        for (place, out) in out.iter_mut().enumerate() {
            for (out, seen) in out.iter_mut().zip(&seen[class_of(rate, place) * width + x]) {
                *out += *seen;
            }
        }
    }
}

impl Wide for Group<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { layer, parts, shape, index, rows } = self;
        let side = shape.border.1 * OUTPUTS;
        let count = rows.len() / shape.row();
        let first = index * parts.last().map_or(1, |part| part.rate);
        for (at, part) in parts.iter().enumerate() {
            if at == 0 {
                for (y, row) in rows.chunks_exact_mut(shape.row()).enumerate() {
                    Self::row(simd, part, first + y, (0, 0), &mut row[side..][..shape.width * OUTPUTS]);
                }
                continue;
            }
            let (rate, width) = (part.rate, part.map.shape.width);
            let across = classes(rate).len();
            let mut scratch = take_scratch([across * width * OUTPUTS, 0]);
            let seen: &mut [f32] = &mut scratch[0];
            for small in 0..count / rate {
                for down in 0..across {
                    for (across, seen) in seen.chunks_exact_mut(width * OUTPUTS).enumerate() {
                        Self::row(simd, part, first / rate + small, (down, across), seen);
                    }
                    for place in 0..rate {
                        if class_of(rate, place) == down {
                            let row = &mut rows[(small * rate + place) * shape.row()..][..shape.row()];
                            spread(seen, rate, &mut row[side..][..shape.width * OUTPUTS]);
                        }
                    }
                }
            }
            give_scratch(scratch);
        }
        if layer.rectify {
            // The border's zeros stay what they are.
            for value in rows {
                *value = value.max(0.0);
            }
        }
    }
}

impl Layer for Pyramid {
    fn run(&self, maps: &mut Maps) {
        let mut target = maps.take(self.target);
        let parts: Vec<Ready<'_>> = self
            .parts
            .par_iter()
            .enumerate()
            .map(|(level, part)| part.ready(maps, 1 << level, if level == 0 { &self.bias } else { &[0.0; OUTPUTS] }))
            .collect();
        let Shape { height, width, .. } = parts[0].map.shape;
        let shape = Shape::new(1, height, width, OUTPUTS).bordered(self.border, self.border);
        target.prepare(shape);
        let group = shape.row() << (self.parts.len() - 1);
        let body = &mut target.values[self.border * shape.row()..][..height * shape.row()];
        body.par_chunks_mut(group).enumerate().for_each(|(index, rows)| {
            wide(Group { layer: self, parts: &parts, shape, index, rows });
        });
        maps.put(self.target, target);
    }

    fn name(&self) -> String {
        format!("pyramid of {}", self.parts.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain way: every part enlarged, scaled, summed, then convolved.
    fn plain(parts: &[(Map, Vec<f32>)], layer: &Pyramid) -> Vec<f32> {
        let Shape { height, width, .. } = parts[0].0.shape;
        let mut result = Vec::new();
        for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
            for out in 0..OUTPUTS {
                let mut sum = f64::from(layer.bias[out]);
                for (level, (map, gains)) in parts.iter().enumerate() {
                    let part = &layer.parts[level];
                    let channels = map.shape.channels;
                    for (row, column) in (0..3).flat_map(|row| (0..3).map(move |column| (row, column))) {
                        if !(1..=height).contains(&(y + row)) || !(1..=width).contains(&(x + column)) {
                            continue;
                        }
                        let (y, x) = ((y + row - 1) >> level, (x + column - 1) >> level);
                        let pixel = &map.values[map.shape.at(0, y) + x * channels..][..channels];
                        for (input, gain) in gains.iter().enumerate() {
                            let value = part.inner.as_ref().map_or(pixel.get(input).copied(), |inner| {
                                Some(inner[input * channels..][..channels].iter().zip(pixel).map(|(w, x)| w * x).sum())
                            });
                            let weight = part.filter[((out * gains.len() + input) * 3 + row) * 3 + column];
                            sum += f64::from(value.unwrap() * gain * weight);
                        }
                    }
                }
                result.push((sum as f32).max(0.0));
            }
        }
        result
    }

    #[test]
    fn it_is_the_convolution_over_the_enlarged_sum() {
        let mut seed = 1u32;
        let mut random = move || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let inputs = 7;
        let mut maps = Maps::new(9);
        let mut inputs_of_plain = Vec::new();
        let mut layer = Pyramid {
            parts: Vec::new(),
            bias: std::array::from_fn(|_| random()),
            rectify: true,
            target: Slot(8),
            border: 1,
        };
        for level in 0..4 {
            let channels = [3, 4, 7, 6][level];
            let mut map = Map::default();
            map.prepare(Shape::new(1, 16 >> level, 24 >> level, channels).bordered(1, 1));
            map.pieces(5).into_iter().for_each(|piece| piece.out.iter_mut().for_each(|value| *value = random()));
            let mut gains = Map::default();
            gains.prepare(Shape::new(1, 1, 1, inputs));
            gains.values.iter_mut().for_each(|value| *value = random());
            inputs_of_plain.push((map.clone(), gains.values.to_vec()));
            maps.put(Slot(2 * level), map);
            maps.put(Slot(2 * level + 1), gains);
            layer.parts.push(Part {
                map: Slot(2 * level),
                gains: Slot(2 * level + 1),
                filter: (0..OUTPUTS * inputs * 9).map(|_| random()).collect(),
                inner: (channels != inputs).then(|| (0..inputs * channels).map(|_| random()).collect()),
            });
        }
        layer.run(&mut maps);
        let found = maps.get(Slot(8));
        let expected = plain(&inputs_of_plain, &layer);
        let found: Vec<f32> =
            (0..16).flat_map(|y| found.values[found.shape.at(0, y)..][..24 * OUTPUTS].to_vec()).collect();
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 1e-4, "at {at}: {found} for {expected}");
        }
        assert!(expected.iter().any(|value| *value > 1.0));
    }
}
