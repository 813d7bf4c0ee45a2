//! Points, turns of a page, and rectangles that lie askew: the plane geometry of text.
//!
//! x grows to the right, y downwards; a pixel's centre lies half a unit inside it.

/// Four points: where the text begins above, ends above, ends below, begins below.
pub(crate) type Corners = [[f32; 2]; 4];

/// A clockwise turn that makes a page upright.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Turn {
    #[default]
    None,
    Quarter,
    Half,
    ThreeQuarters,
}

impl Turn {
    /// 0, 90, 180 or 270.
    pub(crate) fn degrees(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Quarter => 90,
            Self::Half => 180,
            Self::ThreeQuarters => 270,
        }
    }

    /// This turn and half a turn more.
    pub(crate) fn reversed(self) -> Self {
        match self {
            Self::None => Self::Half,
            Self::Quarter => Self::ThreeQuarters,
            Self::Half => Self::None,
            Self::ThreeQuarters => Self::Quarter,
        }
    }

    /// Whether width and height change places.
    pub(crate) fn sideways(self) -> bool {
        matches!(self, Self::Quarter | Self::ThreeQuarters)
    }

    /// Width and height after the turn.
    pub(crate) fn size<T>(self, (width, height): (T, T)) -> (T, T) {
        if self.sideways() { (height, width) } else { (width, height) }
    }

    /// Where a point of the turned page lay before, on a page of `width` by `height` as it came.
    pub(crate) fn back(self, [x, y]: [f32; 2], (width, height): (f32, f32)) -> [f32; 2] {
        match self {
            Self::None => [x, y],
            Self::Quarter => [y, height - x],
            Self::Half => [width - x, height - y],
            Self::ThreeQuarters => [width - y, x],
        }
    }
}

/// A rectangle whose text runs along a direction within 45° of the x axis.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rect {
    pub(crate) centre: [f32; 2],
    /// Angle of the text's direction in radians, clockwise as seen, -π/4 to π/4.
    pub(crate) angle: f32,
    /// Extent along the direction.
    pub(crate) length: f32,
    /// Extent across.
    pub(crate) height: f32,
}

impl Rect {
    /// The direction as a unit vector.
    pub(crate) fn along(&self) -> [f32; 2] {
        [self.angle.cos(), self.angle.sin()]
    }

    /// Corners in reading order.
    pub(crate) fn corners(&self) -> Corners {
        let [x, y] = self.along();
        let point = |along: f32, across: f32| {
            let (along, across) = (along * self.length / 2.0, across * self.height / 2.0);
            [self.centre[0] + along * x - across * y, self.centre[1] + along * y + across * x]
        };
        [point(-1.0, -1.0), point(1.0, -1.0), point(1.0, 1.0), point(-1.0, 1.0)]
    }

    /// Larger by `along` at both ends and by `across` above and below.
    pub(crate) fn grown(self, along: f32, across: f32) -> Self {
        Self { length: self.length + 2.0 * along, height: self.height + 2.0 * across, ..self }
    }

    /// The same on a plane that is `factor` times larger.
    pub(crate) fn scaled(self, factor: f32) -> Self {
        Self {
            centre: self.centre.map(|value| value * factor),
            length: self.length * factor,
            height: self.height * factor,
            ..self
        }
    }

    /// On the page turned by half, which has this size.
    pub(crate) fn reversed(self, (width, height): (f32, f32)) -> Self {
        Self { centre: [width - self.centre[0], height - self.centre[1]], ..self }
    }
}

/// The smallest rectangle of a given angle around points.
pub(crate) fn fit(points: &[[f32; 2]], angle: f32) -> Rect {
    let (x, y) = (angle.cos(), angle.sin());
    let (mut low, mut high) = ([f32::INFINITY; 2], [f32::NEG_INFINITY; 2]);
    for point in points {
        for (axis, value) in [point[0] * x + point[1] * y, point[1] * x - point[0] * y].into_iter().enumerate() {
            low[axis] = low[axis].min(value);
            high[axis] = high[axis].max(value);
        }
    }
    if points.is_empty() {
        return Rect { centre: [0.0; 2], angle, length: 0.0, height: 0.0 };
    }
    let (along, across) = ((low[0] + high[0]) / 2.0, (low[1] + high[1]) / 2.0);
    Rect {
        centre: [along * x - across * y, along * y + across * x],
        angle,
        length: high[0] - low[0],
        height: high[1] - low[1],
    }
}

/// The rectangle of least area around a convex hull: one of its sides lies on a side of the hull (Freeman and Shapira 1975).
pub(crate) fn tightest(hull: &[[f32; 2]]) -> Rect {
    let mut best = fit(hull, 0.0);
    for (index, from) in hull.iter().enumerate() {
        let to = hull[(index + 1) % hull.len()];
        let side = [to[0] - from[0], to[1] - from[1]];
        if side == [0.0; 2] {
            continue;
        }
        let rect = fit(hull, within_an_eighth(side[1].atan2(side[0])));
        if rect.length * rect.height < best.length * best.height {
            best = rect;
        }
    }
    best
}

/// An angle modulo a quarter turn, from -π/4 up to π/4.
fn within_an_eighth(angle: f32) -> f32 {
    let quarter = std::f32::consts::FRAC_PI_2;
    angle - (angle / quarter).round() * quarter
}

/// Convex hull by monotone chains (Andrew 1979), without points in the middle of a side.
pub(crate) fn hull(mut points: Vec<[f32; 2]>) -> Vec<[f32; 2]> {
    points.sort_unstable_by(|a, b| a[0].total_cmp(&b[0]).then(a[1].total_cmp(&b[1])));
    points.dedup();
    if points.len() < 3 {
        return points;
    }
    let mut chain: Vec<[f32; 2]> = Vec::new();
    let add = |from: usize, point: [f32; 2], chain: &mut Vec<[f32; 2]>| {
        while chain.len() >= from + 2 && !turns_left(chain[chain.len() - 2], chain[chain.len() - 1], point) {
            chain.pop();
        }
        chain.push(point);
    };
    points.iter().for_each(|point| add(0, *point, &mut chain));
    let from = chain.len() - 1;
    points.iter().rev().skip(1).for_each(|point| add(from, *point, &mut chain));
    chain.pop();
    chain
}

fn turns_left(a: [f32; 2], b: [f32; 2], c: [f32; 2]) -> bool {
    (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]) > 0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: [f32; 2], b: [f32; 2]) -> bool {
        (a[0] - b[0]).abs() < 1e-3 && (a[1] - b[1]).abs() < 1e-3
    }

    #[test]
    fn turns_bring_points_back() {
        // A page of 4 by 10 with a mark near its top left corner; after each turn the mark lies elsewhere.
        let (size, mark) = ((4.0, 10.0), [1.0, 2.0]);
        for (turn, seen) in [
            (Turn::None, [1.0, 2.0]),
            (Turn::Quarter, [8.0, 1.0]),
            (Turn::Half, [3.0, 8.0]),
            (Turn::ThreeQuarters, [2.0, 3.0]),
        ] {
            assert_eq!(turn.back(seen, size), mark, "{turn:?}");
            assert_eq!(turn.reversed().reversed(), turn);
            assert_eq!((turn.degrees() + 180) % 360, turn.reversed().degrees());
        }
        assert_eq!(Turn::Quarter.size((4, 10)), (10, 4));
    }

    #[test]
    fn a_hull_leaves_inner_points_out() {
        let points = vec![[0.0, 0.0], [4.0, 0.0], [2.0, 0.0], [2.0, 1.0], [4.0, 2.0], [0.0, 2.0], [4.0, 2.0]];
        let mut found = hull(points);
        found.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert_eq!(found, [[0.0, 0.0], [0.0, 2.0], [4.0, 0.0], [4.0, 2.0]]);
        assert_eq!(hull(vec![[1.0, 1.0], [1.0, 1.0]]), [[1.0, 1.0]]);
        assert!(hull(vec![]).is_empty());
    }

    #[test]
    fn the_tightest_rectangle_is_found_at_any_angle() {
        for angle in [-0.7f32, -0.3, -0.02, 0.0, 0.1, 0.6] {
            let rect = Rect { centre: [50.0, 40.0], angle, length: 60.0, height: 10.0 };
            let found = tightest(&hull(rect.corners().to_vec()));
            assert!(close(found.centre, rect.centre), "{found:?}");
            assert!((found.angle - angle).abs() < 1e-4 && (found.length - 60.0).abs() < 1e-2, "{found:?}");
            assert!((found.height - 10.0).abs() < 1e-2, "{found:?}");
        }
        let single = tightest(&hull(vec![[3.0, 4.0]]));
        assert_eq!((single.centre, single.length, single.height), ([3.0, 4.0], 0.0, 0.0));
    }

    #[test]
    fn corners_go_round_from_the_texts_beginning() {
        let rect = Rect { centre: [10.0, 5.0], angle: 0.0, length: 8.0, height: 2.0 };
        assert_eq!(rect.corners(), [[6.0, 4.0], [14.0, 4.0], [14.0, 6.0], [6.0, 6.0]]);
        assert_eq!(rect.grown(1.0, 2.0).corners()[0], [5.0, 2.0]);
        assert_eq!(rect.reversed((20.0, 30.0)).centre, [10.0, 25.0]);
        assert_eq!(rect.scaled(2.0).corners()[2], [28.0, 12.0]);
        // Askew: the text runs down to the right.
        let tilted = Rect { angle: 0.5, ..rect }.corners();
        assert!(tilted[1][1] > tilted[0][1] && tilted[3][0] < tilted[0][0]);
    }
}
