//! The way of one page from pixels to text, without the networks: it says what to compute next and takes the answer.
//!
//! detect → (sideways: detect again) → orient → (in doubt: recognise some lines both ways) → recognise → order.
//! Whoever runs it has the networks; between two pieces of work it may do something else.

use ingle_engine::{PageImage, PageText};
use rayon::prelude::*;

use super::blanks::{Placed, Spacing};
use super::compose::{self, Read};
use super::ctc::{self, Alphabet, Step};
use super::geometry::{Corners, Rect, Turn};
use super::ink::{self, Ink};
use super::lines::{self, Batch, Piece, Strip};
use super::orientation::{self, Verdict};
use super::postprocess::{self, Found};
use super::prepare::{Frame, prepare};
use super::shapes;

/// Columns of the strips that are held at once.
const GROUP_COLUMNS: usize = 24_000;

/// What is to be computed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Work {
    /// The detector's map [height, width] of a picture [height, width, 3].
    Detect { values: Vec<f32>, width: usize, height: usize },
    /// For each window [count, 48, 192, 3] the probability that it stands on its head.
    Orient { values: Vec<f32>, count: usize },
    /// For each line [count, 48, width, 3] its most probable class and that probability, at each of width / 8 steps.
    Recognise { values: Vec<f32>, count: usize, width: usize },
    /// Nothing: this is what stands on the page.
    Done(PageText),
}

/// A line that was found: on the upright page, and its corners on the page as it came.
#[derive(Debug, Clone)]
struct Line {
    rect: Rect,
    corners: Corners,
}

impl Line {
    /// What stands from one share of its length to another.
    fn part(&self, begin: f32, end: f32) -> Self {
        let [x, y] = self.rect.along();
        let shift = ((begin + end) / 2.0 - 0.5) * self.rect.length;
        let centre = [self.rect.centre[0] + shift * x, self.rect.centre[1] + shift * y];
        let [begin_above, end_above, end_below, begin_below] = self.corners;
        let between = |a: [f32; 2], b: [f32; 2], at: f32| [a[0] + (b[0] - a[0]) * at, a[1] + (b[1] - a[1]) * at];
        Self {
            rect: Rect { centre, length: self.rect.length * (end - begin), ..self.rect },
            corners: [
                between(begin_above, end_above, begin),
                between(begin_above, end_above, end),
                between(begin_below, end_below, end),
                between(begin_below, end_below, begin),
            ],
        }
    }
}

enum Stage {
    Detect(Frame),
    Orient,
    /// Strips of some lines, as they lie.
    Doubt(Vec<Strip>),
    Lines(Group),
    Done,
}

/// Lines that are cut out and not all recognised yet.
struct Group {
    /// Index of the first line after them.
    next: usize,
    strips: Vec<Strip>,
    /// What is recognised as one.
    parts: Vec<Part>,
    /// Their pieces' `line` is an index into `parts`.
    batches: Vec<Batch>,
}

/// A line, or what stands between two wide gaps of it.
struct Part {
    line: Line,
    /// Index of its strip.
    strip: usize,
    ink: Ink,
    glyphs: Vec<Placed>,
}

/// See the module's text.
pub(crate) struct Reading {
    page: PageImage,
    /// Whether there is an orientation network.
    orients: bool,
    stage: Stage,
    turn: Turn,
    lines: Vec<Line>,
    skew: f32,
    read: Vec<Read>,
}

impl Reading {
    pub(crate) fn new(page: PageImage, orients: bool) -> Self {
        let frame = Frame::new(page.width, page.height, Turn::None);
        Self {
            page,
            orients,
            stage: Stage::Detect(frame),
            turn: Turn::None,
            lines: Vec::new(),
            skew: 0.0,
            read: Vec::new(),
        }
    }

    /// What to compute next. Asked again without an answer, it says the same.
    pub(crate) fn work(&mut self) -> Work {
        match &self.stage {
            Stage::Detect(frame) => {
                Work::Detect { values: prepare(&self.page, frame), width: frame.width, height: frame.height }
            }
            Stage::Orient => {
                let mut values = Vec::new();
                let chosen = self.telling(orientation::LINES_ASKED);
                for index in &chosen {
                    orientation::window(&lines::cut(&self.page, &self.lines[*index].corners), &mut values);
                }
                Work::Orient { values, count: chosen.len() }
            }
            Stage::Doubt(strips) => {
                let turned: Vec<Strip> = strips.iter().map(orientation::reversed).collect();
                let both: Vec<&Strip> = strips.iter().chain(&turned).collect();
                let batch = Self::tried(&both);
                Work::Recognise {
                    values: lines::input(&batch, |index| both[index]),
                    count: batch.pieces.len(),
                    width: batch.width,
                }
            }
            Stage::Lines(group) => match group.batches.last() {
                Some(batch) => Work::Recognise {
                    values: lines::input(batch, |part| &group.strips[group.parts[part].strip]),
                    count: batch.pieces.len(),
                    width: batch.width,
                },
                None => Work::Done(compose::compose(&self.read, self.skew, self.turn)),
            },
            Stage::Done => Work::Done(compose::compose(&self.read, self.skew, self.turn)),
        }
    }

    /// Takes the detector's map.
    pub(crate) fn detected(&mut self, map: &[f32]) {
        let Stage::Detect(frame) = std::mem::replace(&mut self.stage, Stage::Done) else { return };
        let (found, skew) = postprocess::find(map, frame.width);
        if frame.turn == Turn::None && orientation::lies_sideways(&found) {
            self.stage = Stage::Detect(Frame::new(self.page.width, self.page.height, Turn::Quarter));
            return;
        }
        self.turn = frame.turn;
        self.skew = skew;
        self.lines = found
            .iter()
            .map(|Found { rect, .. }| {
                let rect = Rect { centre: frame.on_page(rect.centre), ..rect.scaled(frame.scale) };
                self.placed(rect)
            })
            .collect();
        if self.lines.is_empty() {
            return;
        }
        if self.orients { self.stage = Stage::Orient } else { self.doubt() }
    }

    /// Takes each window's probability of standing on its head.
    pub(crate) fn oriented(&mut self, reversed: &[f32]) {
        match orientation::verdict(reversed) {
            Verdict::Upright => self.next_group(0),
            Verdict::Doubtful => self.doubt(),
        }
    }

    /// Takes the steps of all lines of the batch, one line after another.
    pub(crate) fn recognised(&mut self, steps: &[Step], alphabet: &Alphabet) {
        match std::mem::replace(&mut self.stage, Stage::Done) {
            Stage::Doubt(strips) => {
                let batch = Self::tried(&strips.iter().chain(&strips).collect::<Vec<_>>());
                let readings: Vec<Vec<f32>> = steps
                    .chunks_exact(batch.width / 8)
                    .map(|steps| alphabet.decode(steps).iter().map(|glyph| glyph.confidence).collect())
                    .collect();
                let (upright, turned) = readings.split_at(strips.len().min(readings.len()));
                if orientation::reads_better_reversed(upright, turned) {
                    self.reverse();
                }
                self.next_group(0);
            }
            Stage::Lines(mut group) => {
                if let Some(batch) = group.batches.pop() {
                    for (piece, steps) in batch.pieces.iter().zip(steps.chunks_exact(batch.width / 8)) {
                        let place = |glyph: ctc::Glyph<'_>| Placed {
                            text: glyph.text.into(),
                            at: piece.begin as f32 + (glyph.first + glyph.last + 1) as f32 * 4.0,
                            confidence: glyph.confidence,
                        };
                        group.parts[piece.line].glyphs.extend(alphabet.decode(steps).into_iter().map(place));
                    }
                }
                if !group.batches.is_empty() {
                    self.stage = Stage::Lines(group);
                    return;
                }
                for mut part in group.parts {
                    part.glyphs.sort_by(|a, b| a.at.total_cmp(&b.at));
                    shapes::settle(&part.ink, &mut part.glyphs);
                    let Line { rect, corners } = part.line;
                    self.read.push(Read { rect, corners, spacing: Spacing::new(&part.ink, part.glyphs) });
                }
                self.next_group(group.next);
            }
            other => self.stage = other,
        }
    }

    fn placed(&self, rect: Rect) -> Line {
        let size = (self.page.width as f32, self.page.height as f32);
        Line { rect, corners: rect.corners().map(|corner| self.turn.back(corner, size)) }
    }

    fn telling(&self, count: usize) -> Vec<usize> {
        let lengths: Vec<f32> = self.lines.iter().map(|line| line.rect.length).collect();
        orientation::telling(&lengths, count)
    }

    fn doubt(&mut self) {
        let chosen = self.telling(orientation::LINES_TRIED);
        self.stage =
            Stage::Doubt(chosen.iter().map(|index| lines::cut(&self.page, &self.lines[*index].corners)).collect());
    }

    fn tried(strips: &[&Strip]) -> Batch {
        let piece = |(line, strip): (usize, &&Strip)| {
            let width = strip.width.min(orientation::TRIED_COLUMNS);
            let begin = (strip.width - width) / 2;
            Piece { line, begin, end: begin + width }
        };
        let pieces: Vec<Piece> = strips.iter().enumerate().map(piece).collect();
        let widest = pieces.iter().map(|piece| piece.end - piece.begin).max().unwrap_or(8);
        Batch { width: widest.div_ceil(8) * 8, pieces }
    }

    fn reverse(&mut self) {
        let size = self.turn.size((self.page.width as f32, self.page.height as f32));
        self.turn = self.turn.reversed();
        self.lines = std::mem::take(&mut self.lines).iter().map(|line| self.placed(line.rect.reversed(size))).collect();
    }

    fn next_group(&mut self, first: usize) {
        let mut columns = 0;
        let fitting = self.lines[first..].iter().take_while(|line| {
            columns += lines::strip_width(&line.corners);
            columns <= GROUP_COLUMNS
        });
        let count = fitting.count().max(1).min(self.lines.len() - first);
        let cut = |line: &Line| {
            let strip = lines::cut(&self.page, &line.corners);
            let ink = ink::find(&strip);
            (strip, ink)
        };
        let cut: Vec<(Strip, Ink)> = self.lines[first..first + count].par_iter().map(cut).collect();
        let mut parts = Vec::new();
        let mut pieces = Vec::new();
        for (index, (strip, ink)) in cut.iter().enumerate() {
            let line = &self.lines[first + index];
            for ink_part in ink.parts() {
                let (begin, end) = ink_part.columns(ink, strip.width);
                pieces.push(Piece { line: parts.len(), begin, end });
                // Where it stands is told by its ink: found rectangles reach far beyond it.
                let share = |column: usize| column as f32 / strip.width as f32;
                let line = match ink_part.end {
                    0 => line.clone(),
                    _ => line.part(share(ink_part.begin), share(ink_part.end)),
                };
                parts.push(Part { line, strip: index, ink: ink_part, glyphs: Vec::new() });
            }
        }
        let strips = cut.into_iter().map(|(strip, _)| strip).collect();
        let group = Group { next: first + count, strips, parts, batches: lines::pack(pieces) };
        self.stage = Stage::Lines(group);
    }
}

#[cfg(test)]
mod tests;
