//! Answers that stand still before each of their tokens, so that their node can be lost there: what people read, ids and text, is
//! compared with the same answers undisturbed.
//!
//! One stream is held before each token of an answer of 64, in two ways of choosing tokens, all on one node, and all at once.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join, join_all};
use ingle_proto::v1::{self, FinishReason};

use crate::client::{Answer, Client, question};
use crate::eventually::{eventually, in_time};
use crate::models::FakeModel;

/// Tokens of each answer.
pub const TOKENS: u32 = 64;
/// Streams at once: two ways of choosing tokens for each index.
pub const STREAMS: usize = 2 * TOKENS as usize;

/// A question whose answer is held before token `at` while the model's file says so.
#[derive(Debug)]
struct Case {
    at: usize,
    request: v1::GenerateRequest,
    undisturbed: Answer,
}

/// Greedy, or from a seed with every penalty.
fn ask(at: u32, greedy: bool) -> v1::GenerateRequest {
    let mut request = question(&format!("What do embers know of winter? ({greedy}; hold at {at})"));
    request.sampling = Some(if greedy {
        v1::Sampling { temperature: Some(0.0), seed: Some(1), ..Default::default() }
    } else {
        v1::Sampling {
            temperature: Some(0.8),
            top_p: Some(0.95),
            seed: Some(u64::from(at) + 7),
            repetition_penalty: Some(1.2),
            presence_penalty: Some(0.5),
            frequency_penalty: Some(0.25),
            ..Default::default()
        }
    });
    request
}

async fn case(client: &Client, at: u32, greedy: bool) -> Case {
    let mut request = ask(at, greedy);
    let mut undisturbed = client.generate(request.clone()).await.expect("an answer");
    assert_eq!((undisturbed.tokens.len(), undisturbed.reason()), (TOKENS as usize, FinishReason::Stop));
    if !greedy {
        // It ends where the text ends anyway, so that text is held back across tokens; the other stop begins often and never ends.
        let end = undisturbed.text.ceil_char_boundary(undisturbed.text.len() - 24);
        request.stop = vec![undisturbed.text[end..].to_owned(), " the hearth keeps no".into()];
        let whole = std::mem::take(&mut undisturbed.text);
        undisturbed = client.generate(request.clone()).await.expect("an answer");
        assert_eq!((undisturbed.text.as_str(), undisturbed.reason()), (&whole[..end], FinishReason::Stop));
    }
    assert!(undisturbed.tokens.len() > at as usize, "it isn't over before it is held: {at}");
    Case { at: at as usize, request, undisturbed }
}

/// Reads a stream to its end; counts it once it has come to the token before which it is held.
async fn read(client: &Client, case: &Case, held: &AtomicUsize) -> Answer {
    let mut stream = client.inference.clone().generate(case.request.clone()).await.expect("a stream").into_inner();
    let mut answer = Answer::default();
    let mut counts = true;
    while let Some(frame) = in_time("a frame", stream.message()).await.expect("the stream survives") {
        answer.take(frame);
        if counts && answer.tokens.len() == case.at {
            counts = false;
            held.fetch_add(1, Ordering::SeqCst);
        }
    }
    answer
}

async fn wait_for(held: &AtomicUsize) {
    eventually("all streams to be held", || async {
        match held.load(Ordering::SeqCst) {
            STREAMS => Ok(()),
            others => Err(format!("{others} of {STREAMS} are")),
        }
    })
    .await;
}

/// The streams, before and while they are held.
#[derive(Debug)]
pub struct Held {
    released: PathBuf,
    cases: Vec<Case>,
    _folder: tempfile::TempDir,
}

impl Held {
    /// None is asked for yet.
    ///
    /// # Panics
    /// No room for a file.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let held = Self { released: folder.path().join("released"), cases: Vec::new(), _folder: folder };
        held.release();
        held
    }

    /// What answers, for nodes with [`STREAMS`] slots.
    #[must_use]
    pub fn model(&self) -> FakeModel {
        FakeModel::that_answers("talk", TOKENS).with_slots(STREAMS as u32).held_until(&self.released)
    }

    /// Lets everybody go on.
    ///
    /// # Panics
    /// No room for a file.
    pub fn release(&self) {
        std::fs::write(&self.released, "").expect("room for a file");
    }

    /// Asks all questions undisturbed, then again so that each answer is held, has their node lost by `harm` once all are, and
    /// proves that nobody notices. Answers how many tokens were still to be written then.
    ///
    /// # Panics
    /// Somebody notices: an answer differs from the undisturbed one, or what was used counts twice.
    pub async fn lose(&mut self, client: &Client, harm: impl Future<Output = ()>) -> u64 {
        let asked = (0..TOKENS).flat_map(|at| [case(client, at, true), case(client, at, false)]);
        self.cases = join_all(asked).await;
        assert_eq!(self.cases.len(), STREAMS);
        std::fs::remove_file(&self.released).expect("it was there");
        let held = AtomicUsize::new(0);
        let answers = join_all(self.cases.iter().map(|case| read(client, case, &held)));
        let harmed = async {
            wait_for(&held).await;
            harm.await;
        };
        let (answers, ()) = join(answers, harmed).await;
        let mut left = 0;
        for (case, answer) in self.cases.iter().zip(&answers) {
            let Case { at, undisturbed, .. } = case;
            assert_eq!(answer.tokens, undisturbed.tokens, "the same ids, lost before {at}");
            assert_eq!(answer.text, undisturbed.text, "the same text, lost before {at}");
            assert_eq!(answer.reason(), undisturbed.reason(), "the same end, lost before {at}");
            assert_eq!(answer.usage(), undisturbed.usage(), "what was used counts once, lost before {at}");
            left += (undisturbed.tokens.len() - at) as u64;
        }
        left
    }
}

impl Default for Held {
    fn default() -> Self {
        Self::new()
    }
}
