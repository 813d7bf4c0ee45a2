//! A node takes its leave: told by the coordinator or by a signal, it says so, waits to be let go, says goodbye, and ends well.

use ingle_proto::v1::{self, work_request, work_response::Message};

use super::harness::{Leader, Node};

const EMBED: (&str, &str) = ("mini", r#"{"task": "embed", "dimensions": 4, "context": 16}"#);

fn leave() -> work_request::Message {
    work_request::Message::Drain(v1::DrainCommand { drain: true, leave: true })
}

async fn goodbye(leader: &mut Leader) {
    leader.until(|message| matches!(message, Message::Goodbye(_)).then_some(())).await;
    leader.send(work_request::Message::Farewell(v1::Farewell {})).await;
}

async fn leaving(leader: &mut Leader) -> i64 {
    leader
        .until(|message| match message {
            Message::Leaving(leaving) => Some(leaving.within_ms),
            _ => None,
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_end_says_goodbye_and_ends_without_an_error() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead_as(1, true).await.expect("a stream");
    leader.send(leave()).await;
    assert!((0..=10_000).contains(&leaving(&mut leader).await), "the time that its settings give");
    goodbye(&mut leader).await;
    node.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_asked_to_end_waits_until_the_coordinator_lets_it_go() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead_as(1, true).await.expect("a stream");
    node.begin_stop();
    leaving(&mut leader).await;
    // Another leader comes meanwhile, and hears of it too; nothing was said to it before.
    let mut second = node.lead_as(2, true).await.expect("a stream");
    leaving(&mut second).await;
    second.quiet().await;
    second.send(leave()).await;
    goodbye(&mut second).await;
    node.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_coordinator_that_answers_nothing_is_not_waited_for() {
    let node = Node::start(&[EMBED]).await;
    let mut leader = node.lead_as(1, false).await.expect("a stream");
    node.begin_stop();
    leaving(&mut leader).await;
    while let Some(message) = leader.next().await {
        assert!(!matches!(message, Message::Goodbye(_)), "nobody would answer");
    }
    node.ended().await;
}
