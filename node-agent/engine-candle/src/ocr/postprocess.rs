//! From the detector's map of probabilities to rectangles around lines of text.
//!
//! As published for differentiable binarisation (Liao et al. 2020, arXiv:1911.08947): threshold, connected regions, the tightest rectangle
//! around each, its mean probability, and growth by area × ratio / perimeter, since the network learns shrunken regions.
//! On top: a short region's own angle is mostly noise, so it takes the page's.

use super::geometry::{Rect, fit, hull, tightest};

/// Text where the probability exceeds this.
const THRESHOLD: f32 = 0.3;
/// Least mean probability inside a rectangle.
const SCORE_MIN: f32 = 0.5;
/// Growth: area × this / perimeter above and below.
const UNCLIP: f32 = 1.6;
/// At a line's ends it grows more: the network tends to miss a last point or a first quotation mark.
const UNCLIP_ENDS: f32 = 1.4 * UNCLIP;
/// Least shorter side in pixels of the map before the growth.
const SIDE_MIN: f32 = 3.5;
/// Most rectangles of a page; the largest regions stay.
pub(crate) const RECTS_MAX: usize = 4000;
/// A region longer than this many heights knows its own angle.
const SURE_ASPECT: f32 = 8.0;
/// Shorter regions keep their angle if it is off the page's by more than this, in radians.
const SKEW_REACH: f32 = 0.12;

/// A region's rectangle on the map, and the mean probability in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Found {
    pub(crate) rect: Rect,
    pub(crate) score: f32,
}

/// Rectangles around text on a map [height, width], in pixels of the map, with the page's angle in radians.
pub(crate) fn find(map: &[f32], width: usize) -> (Vec<Found>, f32) {
    let mut regions = regions(map, width);
    if regions.len() > RECTS_MAX {
        regions.sort_by_key(|region| std::cmp::Reverse(region.pixels));
        regions.truncate(RECTS_MAX);
    }
    let hulls: Vec<Vec<[f32; 2]>> = regions.into_iter().map(|region| hull(region.points)).collect();
    let tight: Vec<Rect> = hulls.iter().map(|hull| tightest(hull)).collect();
    let skew = skew(&tight);
    let mut found = Vec::new();
    for (hull, own) in hulls.iter().zip(&tight) {
        let (longer, shorter) = (own.length.max(own.height), own.length.min(own.height));
        let follows = longer < SURE_ASPECT * shorter && (own.angle - skew).abs() < SKEW_REACH;
        // A squat region's tightest rectangle may stand on a corner.
        let squat = longer < 2.0 * shorter;
        // Hulls run through pixels' centres; the text reaches their edges.
        let rect = if follows || squat { fit(hull, skew) } else { *own }.grown(0.5, 0.5);
        if rect.length.min(rect.height) < SIDE_MIN {
            continue;
        }
        let score = mean_inside(map, width, &rect);
        if score < SCORE_MIN {
            continue;
        }
        let shape = rect.length * rect.height / (2.0 * (rect.length + rect.height));
        found.push(Found { rect: rect.grown(shape * UNCLIP_ENDS, shape * UNCLIP), score });
    }
    (found, skew)
}

/// The angle that most of the text has: the median over rectangles, each counted by its longer side.
fn skew(rects: &[Rect]) -> f32 {
    let mut angles: Vec<(f32, f32)> = rects
        .iter()
        .map(|rect| (rect, rect.length.max(rect.height), rect.length.min(rect.height)))
        .filter(|(_, longer, shorter)| *longer > 4.0 * shorter)
        .map(|(rect, longer, _)| (rect.angle, longer))
        .collect();
    angles.sort_by(|a, b| a.0.total_cmp(&b.0));
    let half = angles.iter().map(|(_, weight)| weight).sum::<f32>() / 2.0;
    let mut seen = 0.0;
    let middle = angles.iter().find(|(_, weight)| {
        seen += weight;
        seen >= half
    });
    middle.map_or(0.0, |(angle, _)| *angle)
}

/// Ends of a region's rows, and how many pixels it has.
#[derive(Debug, Clone, Default)]
struct Region {
    points: Vec<[f32; 2]>,
    pixels: usize,
}

/// Neighbouring pixels of one row above the threshold: `begin..end`, and the run's parent in the forest of runs.
struct Run {
    row: usize,
    begin: usize,
    end: usize,
    parent: usize,
}

/// Regions of pixels above the threshold that touch by a side or a corner, in the order of their first rows.
fn regions(map: &[f32], width: usize) -> Vec<Region> {
    let mut runs: Vec<Run> = Vec::new();
    let mut above = 0..0;
    for (row, values) in map.chunks_exact(width.max(1)).enumerate() {
        let first = runs.len();
        let mut x = 0;
        while let Some(begin) = values[x..].iter().position(|value| *value > THRESHOLD).map(|at| at + x) {
            let end = values[begin..].iter().position(|value| *value <= THRESHOLD).map_or(width, |at| at + begin);
            runs.push(Run { row, begin, end, parent: runs.len() });
            x = end;
        }
        // Both rows' runs are sorted, so that one pass over each joins them.
        let mut upper = above.start;
        for lower in first..runs.len() {
            while upper < above.end && runs[upper].end < runs[lower].begin {
                upper += 1;
            }
            let mut touching = upper;
            while touching < above.end && runs[touching].begin <= runs[lower].end {
                join(&mut runs, touching, lower);
                touching += 1;
            }
        }
        above = first..runs.len();
    }
    let mut places = vec![usize::MAX; runs.len()];
    let mut regions: Vec<Region> = Vec::new();
    for index in 0..runs.len() {
        let root = root(&mut runs, index);
        if places[root] == usize::MAX {
            places[root] = regions.len();
            regions.push(Region::default());
        }
        let (run, region) = (&runs[index], &mut regions[places[root]]);
        region.pixels += run.end - run.begin;
        let y = run.row as f32 + 0.5;
        region.points.extend([[run.begin as f32 + 0.5, y], [run.end as f32 - 0.5, y]]);
    }
    regions
}

fn root(runs: &mut [Run], mut index: usize) -> usize {
    while runs[index].parent != index {
        runs[index].parent = runs[runs[index].parent].parent;
        index = runs[index].parent;
    }
    index
}

fn join(runs: &mut [Run], a: usize, b: usize) {
    let (a, b) = (root(runs, a), root(runs, b));
    // The earlier one stays the root, so that regions keep the order of their first rows.
    runs[a.max(b)].parent = a.min(b);
}

/// Mean of the map over the pixels whose centres lie inside a rectangle.
fn mean_inside(map: &[f32], width: usize, rect: &Rect) -> f32 {
    let corners = rect.corners();
    let bound = |axis: usize, limit: usize| {
        let values = corners.map(|corner| corner[axis]);
        let low = values.into_iter().fold(f32::INFINITY, f32::min).max(0.0) as usize;
        let high = values.into_iter().fold(0.0f32, f32::max).ceil() as usize;
        low..high.min(limit)
    };
    let [along_x, along_y] = rect.along();
    let (mut sum, mut count) = (0.0f64, 0usize);
    for y in bound(1, map.len() / width.max(1)) {
        for x in bound(0, width) {
            let (dx, dy) = (x as f32 + 0.5 - rect.centre[0], y as f32 + 0.5 - rect.centre[1]);
            let (along, across) = (dx * along_x + dy * along_y, dy * along_x - dx * along_y);
            if along.abs() <= rect.length / 2.0 + 0.01 && across.abs() <= rect.height / 2.0 + 0.01 {
                sum += f64::from(map[y * width + x]);
                count += 1;
            }
        }
    }
    if count == 0 { 0.0 } else { (sum / count as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 320;
    const HEIGHT: usize = 200;

    /// A map with these rectangles at a probability.
    fn map(rects: &[(Rect, f32)]) -> Vec<f32> {
        let mut map = vec![0.01; WIDTH * HEIGHT];
        for (index, value) in map.iter_mut().enumerate() {
            let (x, y) = ((index % WIDTH) as f32 + 0.5, (index / WIDTH) as f32 + 0.5);
            for (rect, probability) in rects {
                let [ax, ay] = rect.along();
                let (dx, dy) = (x - rect.centre[0], y - rect.centre[1]);
                let (along, across) = (dx * ax + dy * ay, dy * ax - dx * ay);
                if along.abs() <= rect.length / 2.0 && across.abs() <= rect.height / 2.0 {
                    *value = *probability;
                }
            }
        }
        map
    }

    fn rect(x: f32, y: f32, length: f32, height: f32, angle: f32) -> Rect {
        Rect { centre: [x, y], angle, length, height }
    }

    #[test]
    fn lines_are_found_grown_and_scored() {
        let (found, skew) = find(&map(&[(rect(100.0, 30.0, 120.0, 6.0, 0.0), 0.9)]), WIDTH);
        assert_eq!(found.len(), 1);
        assert_eq!(skew, 0.0);
        let Found { rect, score } = found[0];
        assert!((score - 0.9).abs() < 0.01, "{score}");
        assert!((rect.centre[0] - 100.0).abs() < 0.6 && (rect.centre[1] - 30.0).abs() < 0.6, "{rect:?}");
        // 120 by 6 grows by 120 · 6 · 1.6 / 252 = 4.57 above and below.
        assert!((rect.height - (6.0 + 9.14)).abs() < 0.1, "{rect:?}");
    }

    #[test]
    fn weak_and_tiny_regions_are_dropped() {
        let weak = rect(100.0, 30.0, 120.0, 6.0, 0.0);
        assert!(find(&map(&[(weak, 0.35)]), WIDTH).0.is_empty());
        assert!(find(&map(&[(rect(100.5, 30.5, 2.0, 2.0, 0.0), 0.9)]), WIDTH).0.is_empty());
        assert!(find(&vec![0.0; WIDTH * HEIGHT], WIDTH).0.is_empty());
        assert!(find(&[], 0).0.is_empty());
    }

    #[test]
    fn corners_connect_and_a_free_row_parts() {
        let touching = [(rect(50.0, 20.0, 40.0, 8.0, 0.0), 0.9), (rect(90.0, 28.0, 40.0, 8.0, 0.0), 0.9)];
        assert_eq!(regions(&map(&touching), WIDTH).len(), 1);
        let apart = [(rect(50.0, 20.0, 40.0, 8.0, 0.0), 0.9), (rect(50.0, 29.0, 40.0, 8.0, 0.0), 0.9)];
        assert_eq!(regions(&map(&apart), WIDTH).len(), 2);
        // A shape that joins only at its lower end is one region all the same.
        let fork = [
            (rect(50.0, 40.0, 4.0, 40.0, 0.0), 0.9),
            (rect(70.0, 40.0, 4.0, 40.0, 0.0), 0.9),
            (rect(60.0, 60.0, 24.0, 4.0, 0.0), 0.9),
        ];
        assert_eq!(regions(&map(&fork), WIDTH).len(), 1);
    }

    #[test]
    fn a_short_word_takes_the_pages_angle() {
        let long: Vec<(Rect, f32)> =
            (0..4).map(|i| (rect(160.0, 30.0 + 30.0 * i as f32, 240.0, 7.0, 0.03), 0.9)).collect();
        let word = (rect(60.0, 160.0, 18.0, 7.0, 0.0), 0.9);
        let (found, skew) = find(&map(&[long, vec![word]].concat()), WIDTH);
        assert_eq!(found.len(), 5);
        assert!((skew - 0.03).abs() < 0.01, "{skew}");
        let short = found.iter().find(|found| found.rect.length < 60.0).unwrap();
        assert_eq!(short.rect.angle, skew);
    }

    #[test]
    fn only_so_many_regions_are_kept() {
        let mut noisy = vec![0.0; 1200 * 1200];
        for y in (0..1200).step_by(8) {
            for x in (0..1200).step_by(8) {
                for (dx, dy) in (0..5).flat_map(|dx| (0..5).map(move |dy| (dx, dy))) {
                    noisy[(y + dy) * 1200 + x + dx] = 0.9;
                }
            }
        }
        assert_eq!(find(&noisy, 1200).0.len(), RECTS_MAX);
    }
}
