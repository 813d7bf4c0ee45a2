//! Feature maps: [count, height, width, channels] floats with the channels innermost, and the slots that layers pass them in.
//!
//! A map may carry a border of zeros, so that a convolution over it needs no special case at the edges. Buffers keep their
//! memory from one run to the next: fresh pages cost as much as a layer.

use crate::floats::Floats;

/// Extents of a map.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) count: usize,
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
    /// Rows of zeros above and below, columns of zeros left and right; not counted in height and width.
    pub(crate) border: (usize, usize),
}

impl Shape {
    /// Of one picture or line without a border.
    pub(crate) fn new(count: usize, height: usize, width: usize, channels: usize) -> Self {
        Self { count, height, width, channels, border: (0, 0) }
    }

    /// The same with a border.
    pub(crate) fn bordered(self, rows: usize, columns: usize) -> Self {
        Self { border: (rows, columns), ..self }
    }

    /// A map without a border seen as one row a picture.
    pub(crate) fn flat(self) -> Self {
        Self { height: 1, width: self.height * self.width, ..self }
    }

    /// Floats in one stored row.
    pub(crate) fn row(&self) -> usize {
        (self.width + 2 * self.border.1) * self.channels
    }

    /// Floats in one stored picture.
    pub(crate) fn picture(&self) -> usize {
        (self.height + 2 * self.border.0) * self.row()
    }

    /// Floats stored.
    pub(crate) fn floats(&self) -> usize {
        self.count * self.picture()
    }

    /// Pixels without the border.
    pub(crate) fn pixels(&self) -> usize {
        self.count * self.height * self.width
    }

    /// Place of the first pixel of a row.
    pub(crate) fn at(&self, index: usize, y: usize) -> usize {
        index * self.picture() + (y + self.border.0) * self.row() + self.border.1 * self.channels
    }
}

/// A map and its values.
#[derive(Debug, Default, Clone)]
pub(crate) struct Map {
    pub(crate) shape: Shape,
    pub(crate) values: Floats,
}

/// Neighbouring pixels of one row, to be written by one thread.
pub(crate) struct Piece<'a> {
    pub(crate) index: usize,
    pub(crate) y: usize,
    pub(crate) x: usize,
    pub(crate) out: &'a mut [f32],
}

impl Map {
    /// Makes room for `shape`; the border is zero then, the rest unspecified.
    pub(crate) fn prepare(&mut self, shape: Shape) {
        self.shape = shape;
        self.values.resize(shape.floats());
        let (rows, columns) = shape.border;
        if (rows, columns) == (0, 0) || self.values.is_empty() {
            return;
        }
        let (row, side) = (shape.row(), columns * shape.channels);
        for picture in self.values.chunks_exact_mut(shape.picture()) {
            let (above, rest) = picture.split_at_mut(rows * row);
            let (body, below) = rest.split_at_mut(shape.height * row);
            above.fill(0.0);
            below.fill(0.0);
            for row in body.chunks_exact_mut(row) {
                row[..side].fill(0.0);
                row[shape.width * shape.channels + side..].fill(0.0);
            }
        }
    }

    /// The rows' insides cut into pieces of at most `pixels`.
    pub(crate) fn pieces(&mut self, pixels: usize) -> Vec<Piece<'_>> {
        let shape = self.shape;
        let side = shape.border.1 * shape.channels;
        let mut pieces = Vec::new();
        if shape.floats() == 0 {
            return pieces;
        }
        for (index, picture) in self.values.chunks_exact_mut(shape.picture()).enumerate() {
            let body = &mut picture[shape.border.0 * shape.row()..][..shape.height * shape.row()];
            for (y, row) in body.chunks_exact_mut(shape.row()).enumerate() {
                let inside = &mut row[side..][..shape.width * shape.channels];
                for (part, out) in inside.chunks_mut(pixels * shape.channels).enumerate() {
                    pieces.push(Piece { index, y, x: part * pixels, out });
                }
            }
        }
        pieces
    }
}

/// Names a map within a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(pub(crate) usize);

/// The maps of a run.
#[derive(Debug, Default)]
pub(crate) struct Maps {
    slots: Vec<Map>,
}

impl Maps {
    pub(crate) fn new(slots: usize) -> Self {
        Self { slots: vec![Map::default(); slots] }
    }

    /// Bytes that all maps hold.
    pub(crate) fn bytes(&self) -> usize {
        self.slots.iter().map(|map| map.values.bytes()).sum()
    }

    pub(crate) fn get(&self, slot: Slot) -> &Map {
        &self.slots[slot.0]
    }

    /// Takes a map out to be written while others are read.
    pub(crate) fn take(&mut self, slot: Slot) -> Map {
        std::mem::take(&mut self.slots[slot.0])
    }

    pub(crate) fn put(&mut self, slot: Slot, map: Map) {
        self.slots[slot.0] = map;
    }
}

/// Pixels of a piece: about 96 KiB of input, so that it stays near its core, in multiples of 8, and enough pieces for
/// all threads to end together.
pub(crate) fn piece_pixels(pixels: usize, channels: usize) -> usize {
    let cached = (24 << 10) / channels.max(1);
    let fair = pixels / (4 * rayon::current_num_threads());
    cached.min(fair).clamp(24, 2048).next_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_inside_and_the_border_is_zero() {
        let mut map = Map::default();
        map.prepare(Shape::new(2, 3, 5, 2).bordered(1, 2));
        map.values.fill(7.0);
        map.prepare(Shape::new(2, 3, 5, 2).bordered(1, 2));
        let mut seen = 0;
        for piece in map.pieces(2) {
            assert_eq!(piece.out.len(), if piece.x == 4 { 2 } else { 4 });
            seen += piece.out.len();
            piece.out.fill(1.0);
        }
        assert_eq!(seen, 2 * 3 * 5 * 2);
        let stored = map.values.iter().filter(|value| **value == 0.0).count();
        assert_eq!(map.values.iter().filter(|value| **value == 1.0).count(), 60);
        assert_eq!(stored, map.shape.floats() - 60);
        assert_eq!(map.values[map.shape.at(1, 2)], 1.0);
        assert_eq!(map.values[map.shape.at(1, 2) - 1], 0.0);
    }
}
