//! People enter a model that is busy with batch work between two of its steps: counted in steps, whatever they take.

use std::sync::Condvar;
use std::time::Instant;

use ingle_engine::{OcrRequest, Output, PageImage, Step};

use super::*;

/// What the model's thread did, in order.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Seen {
    Joined(Class),
    Stepped,
    Done(RequestId),
}

#[derive(Default)]
struct GateState {
    /// Steps that may be done.
    permits: usize,
    /// The thread is in a step and waits.
    waits: bool,
    seen: Vec<Seen>,
}

/// Lets the model's thread do so many steps.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    moved: Condvar,
}

impl Gate {
    fn allow(&self, steps: usize) {
        self.state.lock().unwrap().permits += steps;
        self.moved.notify_all();
    }

    /// Waits until the thread stands in the middle of a step that it may not do; what it did before.
    fn stopped(&self) -> usize {
        let mut state = self.state.lock().unwrap();
        let begun = Instant::now();
        while !state.waits || state.permits > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the thread comes to its next step");
            state = self.moved.wait_timeout(state, Duration::from_secs(1)).unwrap().0;
        }
        state.seen.len()
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        while state.permits == 0 {
            state.waits = true;
            self.moved.notify_all();
            state = self.moved.wait(state).unwrap();
        }
        state.waits = false;
        state.permits -= 1;
        state.seen.push(Seen::Stepped);
    }

    fn saw(&self, seen: Seen) {
        self.state.lock().unwrap().seen.push(seen);
    }
}

/// Fakes that step when the gate lets them.
struct Gated(Arc<Gate>);

struct GatedModel(Box<dyn Model>, Arc<Gate>);

impl Engine for Gated {
    fn backend(&self) -> String {
        "gated".into()
    }

    fn files(&self, names: &[String]) -> Option<Vec<String>> {
        FakeEngine::new().files(names)
    }

    fn inspect(&self, dir: &Path) -> Result<ModelCard, EngineError> {
        FakeEngine::new().inspect(dir)
    }

    fn load(&self, options: &LoadOptions) -> Result<Box<dyn Model>, EngineError> {
        Ok(Box::new(GatedModel(FakeEngine::new().load(options)?, Arc::clone(&self.0))))
    }
}

impl Model for GatedModel {
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
        self.0.join(id, class, request)?;
        self.1.saw(Seen::Joined(class));
        Ok(())
    }

    fn leave(&mut self, id: RequestId) {
        self.0.leave(id);
    }

    fn step(&mut self, out: &mut Vec<Output>) -> Result<Step, EngineError> {
        self.1.pass();
        let before = out.len();
        let stepped = self.0.step(out);
        for output in &out[before..] {
            if let Output::Done { id, .. } = output {
                self.1.saw(Seen::Done(*id));
            }
        }
        stepped
    }
}

fn gated(dir: &Path, config: &str, totals: &Arc<Totals>) -> (ModelHandle, Arc<Gate>) {
    std::fs::write(dir.join("fake-model.json"), config).unwrap();
    let options = LoadOptions { dir: dir.to_owned(), threads: 1, context: 512, slots: 8 };
    let metrics = NodeMetrics::new(&Metrics::new("test"));
    let gate = Arc::new(Gate::default());
    let model = ModelHandle::load(Arc::new(Gated(Arc::clone(&gate))), options, Arc::clone(totals), metrics);
    (model.unwrap(), gate)
}

fn page(lines: u32) -> Request {
    let pixels: Vec<u8> = (0..lines).flat_map(|_| *b"line").collect();
    Request::Ocr(OcrRequest { page: PageImage { width: 4, height: lines, channels: 1, pixels: pixels.into() } })
}

/// Of each kind: how its model is described, long batch work, and what a person asks.
fn kinds(slots: u32) -> Vec<(String, Request, Request)> {
    let config = |more: &str| format!(r#"{{"slots": {slots}, {more}}}"#);
    let texts: Vec<String> = (0..60).map(|number| format!("a few words for text {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    vec![
        (config(r#""task": "embed", "tokens_per_step": 8"#), embed(&texts), embed(&["where is it", "and what"])),
        (config(r#""task": "generate", "output_tokens": 80"#), generate("tell me all", 80), generate("quick", 5)),
        (config(r#""task": "ocr", "tokens_per_step": 1"#), page(40), page(3)),
    ]
}

#[tokio::test]
async fn a_person_enters_after_at_most_one_step_of_batch_work() {
    for slots in [1, 4] {
        for (config, batch, person) in kinds(slots) {
            let dir = tempfile::tempdir().unwrap();
            let (model, gate) = gated(dir.path(), &config, &Arc::default());
            gate.allow(1_000);
            finish(model.submit(Class::Interactive, person.clone()).await.unwrap()).await.unwrap();
            let alone = gate.state.lock().unwrap().seen.iter().filter(|seen| **seen == Seen::Stepped).count();

            let dir = tempfile::tempdir().unwrap();
            let (model, gate) = gated(dir.path(), &config, &Arc::default());
            let batch = model.submit(Class::Batch, batch).await.unwrap();
            gate.allow(5);
            let from = gate.stopped();
            let asked = model.submit(Class::Interactive, person).await.unwrap();
            let id = asked.id;
            gate.allow(1_000);
            let answered = finish(asked).await.unwrap();
            assert!(matches!(answered.last(), Some(Event::Done { .. })), "{config}");
            let seen = gate.state.lock().unwrap().seen[from..].to_vec();
            let position = |what: Seen| seen.iter().position(|seen| *seen == what).expect("it is among what was seen");
            let (joined, done) = (position(Seen::Joined(Class::Interactive)), position(Seen::Done(id)));
            let steps = |part: &[Seen]| part.iter().filter(|seen| **seen == Seen::Stepped).count();
            assert!(steps(&seen[..joined]) <= 1, "{config}: {seen:?}");
            assert_eq!(steps(&seen[joined..done]), alone, "{config}: no step of batch work in between: {seen:?}");
            finish(batch).await.unwrap_or_else(|error| panic!("{config}: the batch goes on: {error}"));
        }
    }
}

#[tokio::test]
async fn while_a_person_is_served_other_models_do_batch_work_now_and_then() {
    let (talks, works) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let totals = Arc::default();
    let (talk, stands) = gated(talks.path(), r#"{"task": "generate"}"#, &totals);
    let (work, gate) = gated(works.path(), r#"{"task": "embed", "tokens_per_step": 8}"#, &totals);
    gate.allow(100_000);
    let person = talk.submit(Class::Interactive, generate("long", 400)).await.unwrap();
    let begun = Instant::now();
    let texts: Vec<String> = (0..2_000).map(|number| format!("a few words for text {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut batch = work.submit(Class::Batch, embed(&texts)).await.unwrap();
    for _ in 0..3 {
        tokio::time::timeout(Duration::from_secs(20), batch.next()).await.expect("it isn't starved").unwrap();
    }
    let steps = gate.state.lock().unwrap().seen.iter().filter(|seen| **seen == Seen::Stepped).count();
    // One in 200 milliseconds, whatever a slow machine made of them.
    let most = begun.elapsed().as_millis() / 200 + 2;
    assert!(steps as u128 <= most, "{steps} steps where {most} were due");
    drop(person);
    finish(batch).await.expect("it goes on");
    // The thread of the model that talks ends with the gate.
    stands.allow(100_000);
}
