//! Answers whose node is lost before any of their tokens: each goes on elsewhere as if nothing had happened, token by token.
//!
//! For each index of an answer of 64 tokens one stream is held there, all on one node; another node comes, and the first is
//! lost with all of them at once. What people read, ids and text, is compared with the same answers undisturbed.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::{join, join_all};
use ingle_proto::v1::{self, FinishReason};
use ingle_tests::client::{Answer, Client, question};
use ingle_tests::cluster::{Cluster, counted};
use ingle_tests::eventually::{eventually, in_time};
use ingle_tests::models::FakeModel;
use ingle_tests::relay::Wire;

/// Tokens of each answer.
const TOKENS: u32 = 64;
/// Streams at once: two ways of choosing tokens for each index.
const STREAMS: usize = 2 * TOKENS as usize;

/// A question whose answer is held before token `at` while the model's file says so.
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

/// Loses the first node in some way when each of its streams is before another token. Afterwards the cluster, and the file
/// that releases what is still held.
async fn lost(harm: impl AsyncFnOnce(&mut Cluster)) -> (Cluster, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a directory");
    let released = folder.path().join("released");
    std::fs::write(&released, "").expect("room for a file");
    let model = FakeModel::that_answers("talk", TOKENS).with_slots(STREAMS as u32).held_until(&released);
    let settings = |config: &mut ingle_node_agent::NodeConfig| {
        (config.slots, config.drain_timeout_s) = (STREAMS as u32, 2);
    };
    let mut cluster = Cluster::of(1).with(model).node(settings).wired().start().await;
    let client = cluster.client.clone();
    let asked = (0..TOKENS).flat_map(|at| [case(&client, at, true), case(&client, at, false)]);
    let cases: Vec<Case> = join_all(asked).await;
    assert_eq!(cases.len(), STREAMS);
    std::fs::remove_file(&released).expect("it was there");

    let held = AtomicUsize::new(0);
    let answers = join_all(cases.iter().map(|case| read(&client, case, &held)));
    let harmed = async {
        wait_for(&held).await;
        cluster.add_node("node-2").await;
        cluster.client.ready(2, 1).await;
        harm(&mut cluster).await;
    };
    let (answers, ()) = join(answers, harmed).await;
    let mut left = 0;
    for (case, answer) in cases.iter().zip(&answers) {
        let Case { at, undisturbed, .. } = case;
        assert_eq!(answer.tokens, undisturbed.tokens, "the same ids, lost before {at}");
        assert_eq!(answer.text, undisturbed.text, "the same text, lost before {at}");
        assert_eq!(answer.reason(), undisturbed.reason(), "the same end, lost before {at}");
        assert_eq!(answer.usage(), undisturbed.usage(), "what was used counts once, lost before {at}");
        left += (undisturbed.tokens.len() - at) as u64;
    }
    let second = cluster.nodes.last().expect("the second").metrics.text();
    assert_eq!(counted(&second, "ingle_node_tokens_written_total"), left, "no token is written a second time");
    (cluster, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_dies_go_on_from_every_token() {
    let (cluster, _folder) = lost(async |cluster| cluster.nodes[0].set_wires(Wire::Broken)).await;
    drop(cluster);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_is_cut_off_go_on_from_every_token_and_its_late_frames_harm_nobody() {
    let (cluster, folder) = lost(async |cluster| cluster.nodes[0].set_wires(Wire::Silent)).await;
    // It goes on alone, and is heard again: nobody waits for what it has to tell, and it is as good as any.
    std::fs::write(folder.path().join("released"), "").expect("room for a file");
    cluster.nodes[0].set_wires(Wire::Whole);
    cluster.client.ready(2, 1).await;
    eventually("what it ran to end", || async {
        match counted(&cluster.nodes[0].metrics.text(), "ingle_node_attempts_running") {
            0 => Ok(()),
            running => Err(format!("{running} attempts run")),
        }
    })
    .await;
    let answer = cluster.client.generate(question("And now?")).await.expect("an answer");
    assert_eq!(answer.tokens.len(), TOKENS as usize);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_drained_node_go_on_from_every_token_when_its_time_is_over() {
    let (cluster, _folder) = lost(async |cluster| {
        let node_id = cluster.client.nodes().await.expect("nodes")["node-1"].node_id.clone();
        // In the past: at once.
        let request = v1::DrainNodeRequest { node_id, deadline_ms: 1 };
        cluster.client.cluster.clone().drain_node(request).await.expect("drained");
    })
    .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_a_node_that_is_upgraded_go_on_from_every_token() {
    let (mut cluster, _folder) = lost(async |cluster| {
        // As SIGTERM does; then it comes back under the same identity.
        cluster.nodes.remove(0).stop().await;
    })
    .await;
    cluster.add_node("node-1").await;
    cluster.client.ready(2, 1).await;
    cluster.stop().await;
}
