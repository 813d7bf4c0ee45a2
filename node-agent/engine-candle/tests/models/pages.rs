//! Whole pages through the engine's seam: made pages whose text is known (`fixtures/make_ocr_pages.py`), upright and turned.

use std::path::Path;

use ingle_engine::{
    Class, EmbedRequest, Engine, EngineError, LoadOptions, Model, OcrRequest, Output, PageImage, PageText, Request,
    RequestId, Step, Task,
};
use ingle_engine_candle::CandleEngine;

use crate::starter;

fn model() -> Option<Box<dyn Model>> {
    let dir = starter::ocr()?;
    let options = LoadOptions { dir, threads: 2, context: 1, slots: 3 };
    Some(CandleEngine::new(2).load(&options).unwrap())
}

/// A page and its text, one line each.
fn fixture(kind: &str) -> (PageImage, Vec<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let image = image::open(folder.join(format!("ocr_{kind}.png"))).unwrap().into_luma8();
    let (width, height) = image.dimensions();
    let text = std::fs::read_to_string(folder.join(format!("ocr_{kind}.gt.txt"))).unwrap();
    let lines = text.lines().filter(|line| !line.is_empty()).map(String::from).collect();
    (PageImage { width, height, channels: 1, pixels: image.into_raw().into() }, lines)
}

/// The page lying a quarter turn further to the left, so that one more quarter to the right makes it upright.
fn lying(page: &PageImage) -> PageImage {
    let (width, height) = (page.height, page.width);
    let at = |x: u32, y: u32| page.pixels[(x * page.width + page.width - 1 - y) as usize];
    let pixels: Vec<u8> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| at(x, y)).collect();
    PageImage { width, height, channels: 1, pixels: pixels.into() }
}

fn join(model: &mut dyn Model, id: u64, class: Class, page: PageImage) {
    model.join(RequestId(id), class, Request::Ocr(OcrRequest { page })).unwrap();
}

fn finish(model: &mut dyn Model) -> Vec<(u64, PageText)> {
    let mut out = Vec::new();
    while model.step(&mut out).unwrap() == Step::Busy {}
    let page = |output| match output {
        Output::Page { id, page } => Some((id.0, page)),
        Output::Failed { error, .. } => panic!("{error}"),
        _ => None,
    };
    out.into_iter().filter_map(page).collect()
}

/// Words that stand in both texts in the same order, as a share of the first's.
fn agreement(truth: &[String], found: &PageText) -> f64 {
    let split = |text: String| text.split_whitespace().map(String::from).collect::<Vec<_>>();
    let (truth, found) = (split(truth.join(" ")), split(found.plain()));
    let mut row = vec![0usize; found.len() + 1];
    for word in &truth {
        let mut diagonal = 0;
        for (index, other) in found.iter().enumerate() {
            let above = row[index + 1];
            row[index + 1] = if word == other { diagonal + 1 } else { above.max(row[index]) };
            diagonal = above;
        }
    }
    row[found.len()] as f64 / truth.len() as f64
}

#[test]
fn a_receipt_reads_the_same_whichever_way_it_lies() {
    let Some(mut model) = model() else { return };
    let (mut page, truth) = fixture("receipt");
    for turn in [0, 90, 180, 270] {
        join(model.as_mut(), 1, Class::Batch, page.clone());
        let found = finish(model.as_mut()).remove(0).1;
        assert_eq!(found.turn, turn);
        let share = agreement(&truth, &found);
        assert!(share > 0.9, "turned by {turn}: {share}\n{}", found.plain());
        // Prices stand in the row of what they are for.
        assert!(found.lines.len() <= truth.len() + 2, "{} lines", found.lines.len());
        for corner in found.lines.iter().flat_map(|line| line.corners) {
            let inside = |value: f32, limit: u32| (-40.0..limit as f32 + 40.0).contains(&value);
            assert!(inside(corner[0], page.width) && inside(corner[1], page.height), "{corner:?}");
        }
        page = lying(&page);
    }
}

#[test]
fn two_columns_are_read_one_after_the_other() {
    let Some(mut model) = model() else { return };
    let (page, truth) = fixture("columns");
    join(model.as_mut(), 1, Class::Interactive, page);
    let found = finish(model.as_mut()).remove(0).1;
    let share = agreement(&truth, &found);
    assert!(share > 0.97, "{share}\n{}", found.plain());
    assert!(found.lines.windows(2).all(|two| two[0].block <= two[1].block));
    assert!(found.lines.iter().all(|line| (0.0..=1.0).contains(&line.confidence)));
}

#[test]
fn a_persons_page_overtakes_a_folders_and_a_page_may_leave() {
    let Some(mut model) = model() else { return };
    let (page, _) = fixture("receipt");
    let blank = PageImage { width: 300, height: 200, channels: 3, pixels: vec![255; 300 * 200 * 3].into() };
    for id in [1, 2] {
        join(model.as_mut(), id, Class::Batch, page.clone());
    }
    let mut out = Vec::new();
    (0..5).for_each(|_| assert_eq!(model.step(&mut out).unwrap(), Step::Busy));
    join(model.as_mut(), 3, Class::Interactive, blank);
    assert_eq!(model.free_slots(), 0);
    model.leave(RequestId(2));
    let found = finish(model.as_mut());
    assert_eq!(found.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(found[0].1, PageText::default());
    assert!(found[1].1.lines.len() > 10);
    assert_eq!(model.free_slots(), 3);
}

#[test]
fn what_it_is_not_for_is_refused_by_name() {
    let Some(mut model) = model() else { return };
    let card = model.card();
    assert_eq!((card.task, card.architecture.as_str(), card.quantisation.as_str()), (Task::Ocr, "pp-ocrv4", "F32"));
    assert!(card.parameters > 3_000_000 && card.weight_bytes > 12_000_000, "{card:?}");
    let text = Request::Embed(EmbedRequest { texts: vec!["words".into()], normalise: false });
    let error = model.join(RequestId(1), Class::Batch, text).unwrap_err();
    assert!(matches!(&error, EngineError::Input(problem) if problem.contains("reads pages")), "{error}");
    let hostile = PageImage { width: 100_000, height: 2, channels: 1, pixels: vec![0; 200_000].into() };
    let error = model.join(RequestId(1), Class::Batch, Request::Ocr(OcrRequest { page: hostile })).unwrap_err();
    assert!(error.to_string().contains("100000"), "{error}");
    assert!(model.tokens().encode("words").unwrap_err().to_string().contains("reads pages"));
    assert_eq!(model.free_slots(), 3);
}
