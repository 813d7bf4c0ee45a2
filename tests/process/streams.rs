//! An answer survives the death of the node that gives it: no token lost, none twice, the same text.

use ingle_proto::v1::{self, FinishReason, generate_response::Frame};
use ingle_tests::client::{Answer, question};
use ingle_tests::eventually::in_time;
use ingle_tests::models::FakeModel;
use rustix::process::Signal;

use crate::world::World;

const TOKENS: u32 = 90;

fn ask() -> v1::GenerateRequest {
    let mut request = question("What do embers know of winter?");
    request.sampling = Some(v1::Sampling { seed: Some(42), ..Default::default() });
    request
}

async fn interrupted(harm: impl Fn(&mut World, usize)) {
    let model = FakeModel::that_answers("talk", TOKENS).at_ms_per_step(25);
    let mut world = World::start(2, &[model]).await;
    let undisturbed = world.client.generate(ask()).await.expect("an answer");
    assert_eq!(undisturbed.tokens.len(), TOKENS as usize);

    // Asked before: between what is read and the harm nothing else is waited for, or the answer may be over by then.
    let nodes = world.client.nodes().await.expect("nodes");
    let mut stream = world.client.inference.clone().generate(ask()).await.expect("a stream").into_inner();
    let mut answer = Answer::default();
    while answer.tokens.len() < 20 {
        answer.take(in_time("a token", stream.message()).await.expect("no error").expect("more"));
    }
    let node = answer.started.as_ref().expect("the first frame").node_id.clone();
    let at = (0..2).find(|at| nodes[&format!("node-{}", at + 1)].node_id == node).expect("one of ours");
    harm(&mut world, at);
    while let Some(frame) = in_time("a token", stream.message()).await.expect("the stream survives") {
        let starts_again = matches!(frame.frame, Some(Frame::Started(_)));
        assert!(!starts_again, "the caller doesn't notice");
        answer.take(frame);
    }
    assert_eq!(answer.tokens, undisturbed.tokens);
    assert_eq!(answer.text, undisturbed.text);
    assert_eq!(answer.reason(), FinishReason::Stop);
    assert_eq!(answer.usage().output_tokens, TOKENS, "no token is counted twice");
    assert_eq!(answer.usage().prompt_tokens, undisturbed.usage().prompt_tokens);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_the_death_of_its_node() {
    interrupted(|world, at| world.nodes[at].kill()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_a_node_that_freezes() {
    interrupted(|world, at| world.nodes[at].signal(Signal::STOP)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_a_node_that_is_asked_to_end() {
    interrupted(|world, at| world.nodes[at].signal(Signal::TERM)).await;
}
