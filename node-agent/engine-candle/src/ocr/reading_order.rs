//! Lines in the order in which a person reads them: columns, blocks, rows.

use super::geometry::Rect;

/// A piece of text on the upright, straightened page.
pub(crate) struct Item {
    pub(crate) rect: Rect,
    pub(crate) text: String,
}

/// Indices from left to right, and the block they stand in.
pub(crate) struct Row {
    pub(crate) members: Vec<usize>,
    pub(crate) block: u32,
}

pub(crate) fn order(items: &[Item]) -> Vec<Row> {
    let mut all: Vec<usize> = (0..items.len()).collect();
    all.sort_by(|a, b| items[*a].rect.centre[1].total_cmp(&items[*b].rect.centre[1]));
    all.into_iter().map(|member| Row { members: vec![member], block: 0 }).collect()
}
