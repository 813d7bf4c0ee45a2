//! The executor with the fake engine: order of entry, bounds, cancellation, and a model whose thread fails.

mod preemption;

use std::path::Path;
use std::time::Duration;

use ingle_daemon::metrics::Metrics;
use ingle_engine::fake::FakeEngine;
use ingle_engine::{EmbedRequest, GenerateRequest, Message, Prompt, Resume, Sampling};

use super::*;

fn load(dir: &Path, config: &str) -> ModelHandle {
    std::fs::write(dir.join("fake-model.json"), config).unwrap();
    let options = LoadOptions { dir: dir.to_owned(), threads: 1, context: 512, slots: 8 };
    let metrics = NodeMetrics::new(&Metrics::new("test"));
    ModelHandle::load(Arc::new(FakeEngine::new()), options, Arc::default(), metrics).unwrap()
}

fn embed(texts: &[&str]) -> Request {
    Request::Embed(EmbedRequest { texts: texts.iter().map(|text| (*text).into()).collect(), normalise: true })
}

fn generate(text: &str, max_tokens: u32) -> Request {
    Request::Generate(GenerateRequest {
        prompt: Prompt::Messages(vec![Message { role: "user".into(), content: text.into() }]),
        resume: Resume::default(),
        sampling: Sampling { temperature: 1.0, seed: 7, ..Sampling::default() },
        max_tokens,
        stop: vec![],
        logprobs: 0,
    })
}

/// All events up to the end, or the error.
async fn finish(mut ticket: Ticket) -> Result<Vec<Event>, EngineError> {
    let mut events = Vec::new();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), ticket.next()).await.expect("an event in time")?;
        let last = matches!(event, Event::Done { .. });
        events.push(event);
        if last {
            return Ok(events);
        }
    }
}

fn text(events: &[Event]) -> (Vec<u32>, String) {
    let (mut ids, mut whole) = (Vec::new(), String::new());
    for event in events {
        match event {
            Event::Token { index, token, text, text_offset, .. } => {
                assert_eq!(*index as usize, ids.len(), "no token is lost or said twice");
                assert_eq!(*text_offset as usize, whole.len());
                ids.push(*token);
                whole.push_str(text);
            }
            Event::Done { text, .. } => whole.push_str(text),
            _ => {}
        }
    }
    (ids, whole)
}

#[tokio::test]
async fn texts_come_back_as_vectors() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "embed", "dimensions": 8}"#);
    let events = finish(model.submit(Class::Batch, embed(&["a b", "c"])).await.unwrap()).await.unwrap();
    assert_eq!(events.len(), 3);
    assert!(events.iter().any(|event| matches!(event, Event::Embedding { index: 1, vector, .. } if vector.len() == 8)));
    assert!(model.shared.totals.steps.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_batch_request_makes_room_and_says_the_same_in_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "generate", "slots": 1, "step_ms": 1, "output_tokens": 60}"#);
    let undisturbed = finish(model.submit(Class::Batch, generate("tell me", 60)).await.unwrap()).await.unwrap();

    let mut batch = model.submit(Class::Batch, generate("tell me", 60)).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 10 {
        seen.push(batch.next().await.unwrap());
    }
    let person = finish(model.submit(Class::Interactive, generate("quick", 5)).await.unwrap()).await.unwrap();
    assert_eq!(text(&person).0.len(), 5);
    assert!(batch.events.len() < 55, "the batch request can't have ended before the person's");
    seen.extend(finish(batch).await.unwrap());
    assert_eq!(text(&seen), text(&undisturbed));
    assert_eq!(seen.iter().filter(|event| matches!(event, Event::Prompt(_))).count(), 1);
}

#[tokio::test]
async fn texts_left_over_are_embedded_after_making_room() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "embed", "slots": 1, "step_ms": 2, "tokens_per_step": 8}"#);
    let texts: Vec<String> = (0..40).map(|i| format!("text number {i}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let calm = finish(model.submit(Class::Batch, embed(&texts)).await.unwrap()).await.unwrap();
    let mut batch = model.submit(Class::Batch, embed(&texts)).await.unwrap();
    let mut seen = vec![batch.next().await.unwrap()];
    finish(model.submit(Class::Interactive, embed(&["now"])).await.unwrap()).await.unwrap();
    seen.extend(finish(batch).await.unwrap());
    let vectors = |events: &[Event]| {
        let mut found: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Embedding { index, vector, .. } => Some((*index, vector.clone())),
                _ => None,
            })
            .collect();
        found.sort_by_key(|(index, _)| *index);
        found
    };
    assert_eq!(vectors(&seen).len(), 40);
    assert_eq!(vectors(&seen), vectors(&calm));
}

#[tokio::test]
async fn a_panic_fails_what_is_in_the_model_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "embed", "panic": "boom", "poison": "venom"}"#);
    let error = finish(model.submit(Class::Batch, embed(&["big boom"])).await.unwrap()).await.unwrap_err();
    assert!(matches!(error, EngineError::Compute(_)), "{error}");
    assert!(finish(model.submit(Class::Batch, embed(&["fine"])).await.unwrap()).await.is_ok());
    let error = finish(model.submit(Class::Batch, embed(&["venom"])).await.unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("poison"), "{error}");
    assert!(!model.is_dead());
}

#[tokio::test]
async fn a_model_that_is_gone_after_a_panic_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "embed", "panic": "boom"}"#);
    std::fs::remove_file(dir.path().join("fake-model.json")).unwrap();
    assert!(finish(model.submit(Class::Batch, embed(&["boom"])).await.unwrap()).await.is_err());
    model.stop().await;
    assert!(model.is_dead());
    assert!(model.submit(Class::Batch, embed(&["x"])).await.is_err());
}

#[tokio::test]
async fn a_reader_that_sleeps_is_dropped_and_the_others_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "generate", "context": 60000, "output_tokens": 6000}"#);
    let mut asleep = model.submit(Class::Batch, generate("long", 6000)).await.unwrap();
    let awake = finish(model.submit(Class::Batch, generate("short", 20)).await.unwrap()).await.unwrap();
    assert_eq!(text(&awake).0.len(), 20);
    while model.free_slots() < model.slots() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut events = 0;
    let error = loop {
        match asleep.next().await {
            Ok(Event::Done { .. }) => return, // The thread was slower than this test: nothing was dropped.
            Ok(_) => events += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("behind") && events <= limits::UNREAD_EVENTS, "{error} after {events}");
}

#[tokio::test]
async fn dropping_a_ticket_frees_its_slot_and_stopping_frees_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "generate", "slots": 2, "step_ms": 1, "output_tokens": 400}"#);
    let mut ticket = model.submit(Class::Batch, generate("x", 400)).await.unwrap();
    ticket.next().await.unwrap();
    drop(ticket);
    let eventually = async {
        while model.free_slots() != 2 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), eventually).await.expect("the slot is free again");
    let left = model.submit(Class::Batch, generate("x", 400)).await.unwrap();
    model.stop().await;
    assert!(finish(left).await.is_err());
}

/// Fake models that panic where no step is under way: when a request leaves them.
struct Brittle;

struct BrittleModel(Box<dyn Model>);

impl Engine for Brittle {
    fn backend(&self) -> String {
        "brittle".into()
    }

    fn files(&self, names: &[String]) -> Option<Vec<String>> {
        FakeEngine::new().files(names)
    }

    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError> {
        FakeEngine::new().inspect(dir)
    }

    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError> {
        Ok(Box::new(BrittleModel(FakeEngine::new().load(options)?)))
    }
}

impl Model for BrittleModel {
    fn card(&self) -> &ModelCard {
        self.0.card()
    }

    fn tokens(&self) -> Arc<dyn Tokens> {
        self.0.tokens()
    }

    fn memory_bytes(&self) -> u64 {
        self.0.memory_bytes()
    }

    fn free_slots(&self) -> u32 {
        self.0.free_slots()
    }

    fn join(&mut self, id: RequestId, class: Class, request: Request) -> Result<(), EngineError> {
        self.0.join(id, class, request)
    }

    fn leave(&mut self, _: RequestId) {
        panic!("as the test asks");
    }

    fn step(&mut self, out: &mut Vec<ingle_engine::Output>) -> Result<ingle_engine::Step, EngineError> {
        self.0.step(out)
    }
}

#[tokio::test]
async fn a_panic_outside_of_a_step_leaves_a_model_that_says_it_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let config = r#"{"task": "generate", "slots": 2, "step_ms": 1, "output_tokens": 400}"#;
    std::fs::write(dir.path().join("fake-model.json"), config).unwrap();
    let options = LoadOptions { dir: dir.path().to_owned(), threads: 1, context: 512, slots: 8 };
    let metrics = NodeMetrics::new(&Metrics::new("test"));
    let model = ModelHandle::load(Arc::new(Brittle), options, Arc::default(), metrics).unwrap();
    let stays = model.submit(Class::Batch, generate("x", 400)).await.unwrap();
    let mut leaves = model.submit(Class::Batch, generate("x", 400)).await.unwrap();
    leaves.next().await.unwrap();
    drop(leaves);
    assert!(finish(stays).await.is_err(), "whoever is in the model is told");
    tokio::time::timeout(Duration::from_secs(20), model.stop()).await.expect("its end is seen");
    assert!(model.is_dead(), "so that it is loaded anew");
    assert!(!model.progress().in_engine(), "a thread that has ended doesn't stand still");
}

#[tokio::test]
async fn an_engine_that_stands_still_is_given_up_and_says_who_was_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "generate", "slots": 1, "hang": "quicksand"}"#);
    let mut inside = model.submit(Class::Batch, generate("into quicksand", 5)).await.unwrap();
    let moving = async {
        while !model.progress().in_engine() || model.progress().inside == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), moving).await.expect("it enters the engine");
    let turn = model.progress().turn;
    let mut waiting = model.submit(Class::Batch, generate("behind it", 5)).await.unwrap();
    assert!(!model.is_dead() && !model.progress().abandoned);
    model.saw_still(Duration::from_secs(9));
    assert_eq!((model.progress().turn, model.progress().still_ms), (turn, 9_000));
    model.abandon();
    let told = |error: EngineError| match error {
        EngineError::Stalled { seconds, inside } => (seconds, inside),
        other => panic!("{other}"),
    };
    assert_eq!(told(inside.next().await.unwrap_err()), (9, true));
    assert_eq!(told(waiting.next().await.unwrap_err()), (9, false));
    let late = model.submit(Class::Interactive, generate("too late", 5)).await;
    assert!(matches!(late.map(|_| ()), Err(EngineError::Stalled { inside: false, .. })));
    assert!(model.is_dead() && model.progress().abandoned);
    // Nobody waits for a thread that doesn't come back.
    tokio::time::timeout(Duration::from_secs(20), model.stop()).await.expect("at once");
}

#[tokio::test]
async fn a_model_that_works_is_never_in_the_same_place_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let model = load(dir.path(), r#"{"task": "embed", "dimensions": 8}"#);
    finish(model.submit(Class::Batch, embed(&["a b", "c"])).await.unwrap()).await.unwrap();
    let idle = async {
        while model.progress().in_engine() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), idle).await.expect("it comes back");
    assert!(model.progress().steps > 0);
}
