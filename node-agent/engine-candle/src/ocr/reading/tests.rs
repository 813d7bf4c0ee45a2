//! Pages of bars read by played networks: dark is text, and a bar that grows darker to the right stands upright.

use super::*;

/// Where bars lie on the upright page of 600 by 400: left, top, width. Each is 20 high.
const BARS: [(u32, u32, u32); 5] = [(60, 40, 400), (60, 100, 420), (60, 160, 380), (60, 220, 400), (60, 280, 200)];
const SIZE: (u32, u32) = (600, 400);

/// The page as it lies when `turn` makes it upright.
fn page(turn: Turn, bars: &[(u32, u32, u32)]) -> PageImage {
    let upright = |x: u32, y: u32| {
        let bar =
            bars.iter().find(|(left, top, width)| (*left..left + width).contains(&x) && (*top..top + 20).contains(&y));
        bar.map_or(250u8, |(left, _, width)| if x < left + width / 2 { 90 } else { 0 })
    };
    let (width, height) = turn.size(SIZE);
    let mut pixels = vec![0; (width * height) as usize];
    for (y, x) in (0..SIZE.1).flat_map(|y| (0..SIZE.0).map(move |x| (y, x))) {
        let centre = [x as f32 + 0.5, y as f32 + 0.5];
        let [lying_x, lying_y] = turn.back(centre, (width as f32, height as f32));
        pixels[lying_y as usize * width as usize + lying_x as usize] = upright(x, y);
    }
    PageImage { width, height, channels: 1, pixels: pixels.into() }
}

/// Whether a line's input is lighter at its left.
fn stands_upright(line: &[f32], width: usize) -> bool {
    let middle = &line[24 * width * 3..25 * width * 3];
    let dark: Vec<(usize, f32)> =
        middle.chunks_exact(3).map(|pixel| pixel[0]).enumerate().filter(|(_, value)| *value < -0.1).collect();
    let (first, last) = (dark.first().map_or(0.0, |(_, value)| *value), dark.last().map_or(0.0, |(_, value)| *value));
    first > last
}

/// Reads a page; also tells the kinds of work that were asked for.
fn read(page: PageImage, orients: bool) -> (PageText, String) {
    let alphabet = Alphabet::new(["", "a", "b", " "].map(String::from).to_vec());
    let mut reading = Reading::new(page, orients);
    let mut log = String::new();
    for _ in 0..100 {
        match reading.work() {
            Work::Detect { values, width, height } => {
                log.push('d');
                assert_eq!(values.len(), width * height * 3);
                let map: Vec<f32> =
                    values.chunks_exact(3).map(|pixel| if pixel[0] < 0.0 { 0.9 } else { 0.0 }).collect();
                reading.detected(&map);
            }
            Work::Orient { values, count } => {
                log.push('o');
                let lines = values.chunks_exact(values.len() / count);
                let reversed: Vec<f32> = lines.map(|line| if stands_upright(line, 192) { 0.0 } else { 1.0 }).collect();
                reading.oriented(&reversed);
            }
            Work::Recognise { values, count, width } => {
                log.push('r');
                let mut steps = Vec::new();
                for line in values.chunks_exact(values.len() / count) {
                    let sure = if stands_upright(line, width) { 0.95 } else { 0.3 };
                    steps.extend((0..width / 8).map(|step| match step {
                        2 => (1, sure),
                        4 => (2, sure),
                        _ => (0, 1.0),
                    }));
                }
                reading.recognised(&steps, &alphabet);
            }
            Work::Done(text) => return (text, log),
        }
    }
    panic!("never done: {log}");
}

fn check(turn: Turn, orients: bool, work: &str) {
    let (text, log) = read(page(turn, &BARS), orients);
    assert!(log.starts_with(work) && log[work.len()..].chars().all(|kind| kind == 'r'), "{turn:?}: {log}");
    assert_eq!(text.turn, turn.degrees());
    assert_eq!(text.lines.len(), BARS.len(), "{turn:?}");
    let (width, height) = turn.size(SIZE);
    for (line, (left, top, _)) in text.lines.iter().zip(BARS) {
        assert_eq!(line.text, "ab", "{turn:?}");
        assert!(line.confidence > 0.9);
        let expected = turn.back([left as f32, top as f32 + 10.0], (width as f32, height as f32));
        let begin = [0, 1].map(|axis| f32::midpoint(line.corners[0][axis], line.corners[3][axis]));
        let off = (begin[0] - expected[0]).hypot(begin[1] - expected[1]);
        assert!(off < 6.0, "{turn:?}: {begin:?} where {expected:?} was expected");
    }
}

#[test]
fn an_upright_page_is_asked_about_once() {
    check(Turn::None, true, "dor");
}

#[test]
fn a_page_on_its_head_is_tried_both_ways() {
    check(Turn::Half, true, "dorr");
}

#[test]
fn a_page_on_its_side_is_detected_again() {
    check(Turn::Quarter, true, "ddor");
    check(Turn::ThreeQuarters, true, "ddorr");
}

#[test]
fn without_the_orientation_network_lines_are_tried_both_ways() {
    for turn in [Turn::None, Turn::Half] {
        check(turn, false, "drr");
    }
    for turn in [Turn::Quarter, Turn::ThreeQuarters] {
        check(turn, false, "ddrr");
    }
}

#[test]
fn an_empty_page_is_done_after_detection() {
    let (text, log) = read(page(Turn::None, &[]), true);
    assert_eq!((text, log.as_str()), (PageText::default(), "d"));
}
