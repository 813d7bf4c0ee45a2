//! Lines in the order in which a person reads them: columns, blocks, rows.
//!
//! A cut in x and y by turns (XY-cut, Nagy and Seth 1984) whose choices look at what the text is. A gutter that stays free over
//! several rows parts columns if there is prose on both sides, and cells of a table if there are numbers: columns are read one after the
//! other, a table row by row.

use super::geometry::Rect;

/// A piece of text on the upright, straightened page.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Item {
    pub(crate) rect: Rect,
    pub(crate) text: String,
}

/// Indices from left to right, and the number of the block they stand in, ascending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) members: Vec<usize>,
    pub(crate) block: u32,
}

/// Rows that each column must have.
const ROWS_MIN: usize = 3;
/// Narrowest gutter in heights of a line.
const GUTTER_MIN: f32 = 0.6;
/// Free height in heights of a line that ends a run of rows with a gutter.
const BREAK: f32 = 1.2;
/// Mean characters of a column's row from which it is prose.
const PROSE_CHARACTERS: usize = 18;
/// Rows of two short texts side by side, such as addresses; more of them are a table.
const SHORT_ROWS_MAX: usize = 8;
/// A row further below the last than this many usual distances opens a block.
const BLOCK_DISTANCE: f32 = 1.35;
/// Cuts within cuts.
const DEPTH_MAX: usize = 12;
/// Most places tried for one cut; a page of noise has thousands.
const GUTTERS_MAX: usize = 200;

/// What the order needs of an item.
#[derive(Debug, Clone, Copy)]
struct Part {
    index: usize,
    left: f32,
    right: f32,
    y: f32,
    height: f32,
    characters: usize,
    /// Letters prevail.
    wordy: bool,
}

/// Orders the items of a page.
pub(crate) fn order(items: &[Item]) -> Vec<Row> {
    let part = |(index, item): (usize, &Item)| {
        let rect = &item.rect;
        let half = rect.length / 2.0;
        let letters = item.text.chars().filter(|c| c.is_alphabetic()).count();
        let digits = item.text.chars().filter(char::is_ascii_digit).count();
        Part {
            index,
            left: rect.centre[0] - half,
            right: rect.centre[0] + half,
            y: rect.centre[1],
            height: rect.height.max(1.0),
            characters: item.text.chars().count(),
            wordy: letters > digits,
        }
    };
    let mut regions = Vec::new();
    cut(items.iter().enumerate().map(part).collect(), 0, &mut regions);
    let mut out = Vec::new();
    let mut block = 0;
    for region in &regions {
        number(&rows(region), &mut block, &mut out);
    }
    out
}

/// Appends regions without columns in reading order.
fn cut(mut parts: Vec<Part>, depth: usize, regions: &mut Vec<Vec<Part>>) {
    parts.sort_by(|a, b| a.y.total_cmp(&b.y).then(a.left.total_cmp(&b.left)));
    let columns = if depth < DEPTH_MAX { columns(&parts) } else { None };
    let Some(Columns { begin, end, gutter }) = columns else {
        if !parts.is_empty() {
            regions.push(parts);
        }
        return;
    };
    let below = parts.split_off(end);
    let (left, right) = parts.split_off(begin).into_iter().partition(|part| (part.left + part.right) / 2.0 < gutter);
    for region in [parts, left, right, below] {
        cut(region, depth + 1, regions);
    }
}

/// Parts `begin..end` stand in two columns, left and right of `gutter`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Columns {
    begin: usize,
    end: usize,
    gutter: f32,
}

/// The gutter that parts the most text; `parts` stand from top to bottom.
fn columns(parts: &[Part]) -> Option<Columns> {
    let strips = strips(parts);
    let height = median(parts.iter().map(|part| part.height))?;
    let mut best: Option<(usize, Columns)> = None;
    for gutter in gutters(parts, &strips, height) {
        let free = |strip: &(usize, usize)| {
            parts[strip.0..strip.1].iter().all(|part| part.right <= gutter || part.left >= gutter)
        };
        let mut at = 0;
        while at < strips.len() {
            let mut next = at;
            while next < strips.len()
                && free(&strips[next])
                && (next == at || !breaks(parts, strips[next - 1], strips[next], height))
            {
                next += 1;
            }
            if next > at {
                let (begin, end) = (strips[at].0, strips[next - 1].1);
                if best.is_none_or(|(size, _)| end - begin > size) && are_columns(&parts[begin..end], gutter, height) {
                    best = Some((end - begin, Columns { begin, end, gutter }));
                }
            }
            at = next.max(at + 1);
        }
    }
    best.map(|(_, columns)| columns)
}

/// Ranges of parts between which a level line runs free.
fn strips(parts: &[Part]) -> Vec<(usize, usize)> {
    let mut strips: Vec<(usize, usize)> = Vec::new();
    let mut bottom = f32::NEG_INFINITY;
    for (index, part) in parts.iter().enumerate() {
        // Found rectangles of tight lines overlap; their cores don't.
        let (top, end) = (part.y - 0.25 * part.height, part.y + 0.25 * part.height);
        match strips.last_mut() {
            Some(strip) if top < bottom => strip.1 = index + 1,
            _ => strips.push((index, index + 1)),
        }
        bottom = bottom.max(end);
    }
    strips
}

/// Whether two neighbouring strips lie so far apart that they don't belong together.
fn breaks(parts: &[Part], above: (usize, usize), below: (usize, usize), height: f32) -> bool {
    let bottom = parts[above.0..above.1].iter().map(|part| part.y + 0.35 * part.height).fold(f32::MIN, f32::max);
    let top = parts[below.0..below.1].iter().map(|part| part.y - 0.35 * part.height).fold(f32::MAX, f32::min);
    top - bottom > BREAK * height
}

/// Places that are free within some strip, with text on both sides; near ones are the same.
fn gutters(parts: &[Part], strips: &[(usize, usize)], height: f32) -> Vec<f32> {
    let mut places = Vec::new();
    for (begin, end) in strips.iter().filter(|(begin, end)| end - begin > 1) {
        let mut sides: Vec<(f32, f32)> = parts[*begin..*end].iter().map(|part| (part.left, part.right)).collect();
        sides.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut reach = sides[0].1;
        for (left, right) in sides {
            if left - reach >= GUTTER_MIN * height {
                // The middle, and close to each side: a ragged line's gap is wider than the gutter.
                places.extend([f32::midpoint(reach, left), reach + 0.2 * height, left - 0.2 * height]);
            }
            reach = reach.max(right);
        }
    }
    places.sort_by(f32::total_cmp);
    places.dedup_by(|a, b| *a - *b < 0.15 * height);
    let step = places.len().div_ceil(GUTTERS_MAX).max(1);
    places.into_iter().step_by(step).collect()
}

/// Whether both sides of a gutter are read from top to bottom, each on its own.
fn are_columns(parts: &[Part], gutter: f32, height: f32) -> bool {
    let (left, right): (Vec<Part>, Vec<Part>) = parts.iter().partition(|part| part.right <= gutter);
    let inner_left = left.iter().map(|part| part.right).fold(f32::MIN, f32::max);
    let inner_right = right.iter().map(|part| part.left).fold(f32::MAX, f32::min);
    if inner_right - inner_left < GUTTER_MIN * height {
        return false;
    }
    let characters = |side: &[Part]| side.iter().map(|part| part.characters).sum::<usize>();
    let numbers = |side: &[Part]| {
        let wordy: usize = side.iter().filter(|part| part.wordy).map(|part| part.characters).sum();
        side.len() < ROWS_MIN || wordy * 3 < characters(side) * 2
    };
    // Numbers below each other belong to what stands beside them.
    if numbers(&left) || numbers(&right) {
        return false;
    }
    let mut least_rows = usize::MAX;
    let mut prose = true;
    for side in [&left, &right] {
        let rows = rows(side).len();
        if rows < ROWS_MIN {
            return false;
        }
        least_rows = least_rows.min(rows);
        prose &= characters(side) >= PROSE_CHARACTERS * rows;
    }
    prose || least_rows <= SHORT_ROWS_MAX && side_by_side(&left, &right)
}

/// Whether short texts are blocks beside each other rather than a table's cells: each side is one cell wide.
fn side_by_side(left: &[Part], right: &[Part]) -> bool {
    [left, right].iter().all(|side| rows(side).iter().all(|row| row.len() == 1))
}

/// Parts of a region row by row.
fn rows(parts: &[Part]) -> Vec<Vec<Part>> {
    let mut sorted = parts.to_vec();
    sorted.sort_by(|a, b| a.y.total_cmp(&b.y));
    let mut rows: Vec<Vec<Part>> = Vec::new();
    for part in sorted {
        // The last rows may take it: in a row of unlike heights the centres differ.
        let fits = |row: &&mut Vec<Part>| {
            row.iter().all(|other| {
                let overlap = other.right.min(part.right) - other.left.max(part.left);
                let clear = overlap < 0.3 * (other.right - other.left).min(part.right - part.left);
                clear && (other.y - part.y).abs() < 0.4 * other.height.min(part.height)
            })
        };
        let row = rows.iter_mut().rev().take(3).find(fits);
        match row {
            Some(row) => row.push(part),
            None => rows.push(vec![part]),
        }
    }
    for row in &mut rows {
        row.sort_by(|a, b| a.left.total_cmp(&b.left));
    }
    rows
}

/// Appends a region's rows; a new block begins where the distance or the height of rows leaps.
fn number(rows: &[Vec<Part>], block: &mut u32, out: &mut Vec<Row>) {
    let centre = |row: &[Part]| row.iter().map(|part| part.y).sum::<f32>() / row.len() as f32;
    let height = |row: &[Part]| row.iter().map(|part| part.height).fold(0.0, f32::max);
    let usual = median(rows.windows(2).map(|two| centre(&two[1]) - centre(&two[0])));
    for (index, row) in rows.iter().enumerate() {
        if let Some(before) = index.checked_sub(1).map(|before| &rows[before]) {
            let distance = centre(row) - centre(before);
            let ratio = height(row) / height(before);
            let far = usual.is_some_and(|usual| distance > BLOCK_DISTANCE * usual) || distance > 2.5 * height(row);
            if far || !(0.67..=1.5).contains(&ratio) {
                *block += 1;
            }
        } else if !out.is_empty() {
            *block += 1;
        }
        out.push(Row { members: row.iter().map(|part| part.index).collect(), block: *block });
    }
}

/// The middle one of the values.
pub(super) fn median(values: impl Iterator<Item = f32>) -> Option<f32> {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROSE: &str = "the carpenter carried another window";

    fn item(x: f32, y: f32, text: &str) -> Item {
        let length = text.chars().count() as f32 * 10.0;
        Item {
            rect: Rect { centre: [x + length / 2.0, y], angle: 0.0, length: length + 8.0, height: 30.0 },
            text: text.into(),
        }
    }

    /// Texts row by row, blocks parted by a bar.
    fn read(items: &[Item]) -> String {
        let mut text = String::new();
        let mut block = 0;
        for row in order(items) {
            if !text.is_empty() {
                text.push_str(if row.block == block { "\n" } else { "|" });
            }
            block = row.block;
            let words: Vec<&str> = row.members.iter().map(|member| items[*member].text.as_str()).collect();
            text.push_str(&words.join(" "));
        }
        text
    }

    fn column(x: f32, y: f32, name: &str, rows: usize) -> Vec<Item> {
        (0..rows).map(|row| item(x, y + 34.0 * row as f32, &format!("{name}{row} {PROSE}"))).collect()
    }

    fn names(text: &str) -> Vec<&str> {
        text.split(['\n', '|']).map(|line| line.split(' ').next().unwrap()).collect()
    }

    #[test]
    fn columns_are_read_one_after_the_other_below_their_title() {
        // The right column's lines lie between the left one's.
        let items = [
            column(500.0, 112.0, "r", 5),
            column(20.0, 100.0, "l", 6),
            vec![item(20.0, 30.0, "title across both columns of the page, and some words more to make it long enough")],
            vec![item(
                20.0,
                400.0,
                "footnote across both columns of the page, and some words more to make it long enough",
            )],
        ]
        .concat();
        let found = read(&items);
        assert_eq!(
            names(&found),
            ["title", "l0", "l1", "l2", "l3", "l4", "l5", "r0", "r1", "r2", "r3", "r4", "footnote"]
        );
        assert_eq!(found.matches('|').count(), 3, "{found}");
    }

    #[test]
    fn three_columns_are_read_from_left_to_right() {
        let items = [column(20.0, 100.0, "a", 4), column(900.0, 100.0, "c", 4), column(460.0, 100.0, "b", 4)].concat();
        assert_eq!(names(&read(&items)), ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "c0", "c1", "c2", "c3"]);
    }

    #[test]
    fn a_receipt_is_read_row_by_row() {
        let mut items = Vec::new();
        for (row, name) in ["oat milk", "coffee beans", "rye bread", "TOTAL"].iter().enumerate() {
            items.push(item(300.0, 50.0 + 34.0 * row as f32, "12.50 A"));
            items.push(item(20.0, 52.0 + 34.0 * row as f32, name));
        }
        assert_eq!(read(&items), "oat milk 12.50 A\ncoffee beans 12.50 A\nrye bread 12.50 A\nTOTAL 12.50 A");
    }

    #[test]
    fn a_table_is_read_row_by_row() {
        let mut items = Vec::new();
        for (row, cells) in [
            ["Pos.", "Description", "Amount"],
            ["1", "Window cleaning", "1,250.00"],
            ["2", "Training day", "80.00"],
            ["3", "Steel bracket", "7.10"],
        ]
        .iter()
        .enumerate()
        {
            for (cell, text) in cells.iter().enumerate() {
                items.push(item(20.0 + 250.0 * cell as f32, 50.0 + 40.0 * row as f32, text));
            }
        }
        assert_eq!(
            read(&items),
            "Pos. Description Amount\n1 Window cleaning 1,250.00\n2 Training day 80.00\n3 Steel bracket 7.10"
        );
    }

    #[test]
    fn an_address_stands_beside_details_and_a_heading_below_both() {
        let left = ["Keen Stores", "Paula Webster", "7 Yard Lane", "10069 Norwich"];
        let right = ["Invoice date: May 4", "Invoice no.: A17", "Customer no.: B1"];
        let mut items: Vec<Item> = Vec::new();
        items.extend(left.iter().enumerate().map(|(row, text)| item(20.0, 50.0 + 34.0 * row as f32, text)));
        items.extend(right.iter().enumerate().map(|(row, text)| item(600.0, 50.0 + 34.0 * row as f32, text)));
        items.push(item(20.0, 280.0, "Invoice"));
        assert_eq!(read(&items), format!("{}|{}|Invoice", left.join("\n"), right.join("\n")));
    }

    #[test]
    fn paragraphs_are_blocks() {
        let items = [column(20.0, 0.0, "a", 4), column(20.0, 4.0 * 34.0 + 20.0, "b", 3)].concat();
        let found = read(&items);
        assert_eq!(names(&found), ["a0", "a1", "a2", "a3", "b0", "b1", "b2"]);
        assert_eq!(found.matches('|').count(), 1, "{found}");
    }

    #[test]
    fn nothing_is_lost_or_twice_whatever_lies_there() {
        let mut state = 7u64;
        let mut draw = |limit: u64| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) % limit
        };
        for _ in 0..40 {
            let items: Vec<Item> =
                (0..60).map(|_| item(draw(900) as f32, draw(500) as f32, &"w".repeat(1 + draw(30) as usize))).collect();
            let mut members: Vec<usize> = order(&items).into_iter().flat_map(|row| row.members).collect();
            members.sort_unstable();
            assert_eq!(members, (0..60).collect::<Vec<_>>());
        }
        assert!(order(&[]).is_empty());
    }

    #[test]
    fn a_page_of_noise_ends() {
        let items: Vec<Item> = (0..4000)
            .map(|index| item((index % 63) as f32 * 37.0, (index / 63) as f32 * 33.0, ["ab", "cd", "7"][index % 3]))
            .collect();
        assert_eq!(order(&items).iter().map(|row| row.members.len()).sum::<usize>(), 4000);
    }
}
