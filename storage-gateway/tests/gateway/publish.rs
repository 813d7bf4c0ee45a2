//! A publish killed at every changing call, with and without the last call done, ends as if nothing had happened.

use ingle_gateway::publish::Request;
use ingle_proto::v1::ItemOutcome;
use ingle_proto::{Epoch, ErrorCode};

use crate::plan::Ending;
use crate::rig::{Output, Rig};

use Output::{Keep, Remove, Show};

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Published before, by attempts 1, 2 …
    pub(crate) before: Vec<Vec<Output>>,
    /// What a person put there before the publish under test, if anything.
    pub(crate) person: Vec<(&'static str, &'static [u8])>,
    /// The publish under test, attempt 7.
    pub(crate) outputs: Vec<Output>,
    /// Directories in which nobody but people may change names by then.
    pub(crate) forbidden: Vec<&'static str>,
}

pub(crate) fn scenarios() -> Vec<Scenario> {
    let scenario =
        |name, before: &[&[Output]], person: &[(&'static str, &'static [u8])], outputs: &[Output]| Scenario {
            name,
            before: before.iter().map(|outputs| outputs.to_vec()).collect(),
            person: person.to_vec(),
            outputs: outputs.to_vec(),
            forbidden: Vec::new(),
        };
    let forbidden = |directory, scenario| Scenario { forbidden: vec![directory], ..scenario };
    vec![
        scenario("first", &[], &[], &[Show("a.json", b"new")]),
        scenario("first, deep", &[], &[], &[Show("x/y/a.json", b"new")]),
        scenario("first, empty", &[], &[], &[Show("a.json", b"")]),
        scenario("replace", &[&[Show("a.json", b"old")]], &[], &[Show("a.json", b"new")]),
        scenario("replace by equal bytes", &[&[Show("a.json", b"old")]], &[], &[Show("a.json", b"old")]),
        scenario("remove", &[&[Show("a.json", b"old")]], &[], &[Remove("a.json")]),
        scenario("keep", &[&[Show("a.json", b"old")]], &[], &[Keep("a.json")]),
        scenario("a person's file is there", &[], &[("a.json", b"theirs")], &[Show("a.json", b"new")]),
        scenario("edited since", &[&[Show("a.json", b"old")]], &[("a.json", b"theirs")], &[Show("a.json", b"new")]),
        scenario("edited, to be removed", &[&[Show("a.json", b"old")]], &[("a.json", b"theirs")], &[Remove("a.json")]),
        scenario("a file where a directory is needed", &[], &[("x", b"theirs")], &[Show("x/y/a.json", b"new")]),
        scenario(
            "batch",
            &[&[Show("b.json", b"old b"), Show("c.json", b"old c"), Show("d/e.json", b"old e")]],
            &[("f.json", b"theirs")],
            &[
                Show("a.json", b"new a"),
                Show("b.json", b"new b"),
                Remove("c.json"),
                Keep("d/e.json"),
                Show("f.json", b"new f"),
                Show("g/h/i.json", b"new i"),
            ],
        ),
        forbidden("out/sub", scenario("refused", &[], &[("sub/b", b"theirs")], &[Show("sub/a.json", b"new")])),
        forbidden("out", scenario("refused everywhere", &[], &[], &[Show("a.json", b"new")])),
        forbidden(
            "out/sub",
            scenario(
                "replacing is refused",
                &[&[Show("sub/a.json", b"old")]],
                &[],
                &[Show("sub/a.json", b"new"), Show("c.json", b"new c")],
            ),
        ),
        forbidden("out", scenario("removing is refused", &[&[Show("a.json", b"old")]], &[], &[Remove("a.json")])),
    ]
}

pub(crate) async fn prepared(scenario: &Scenario, link: bool) -> Rig {
    prepared_on(Rig::new(link), scenario).await
}

pub(crate) async fn prepared_on(rig: Rig, scenario: &Scenario) -> Rig {
    let running = rig.start();
    for (attempt, outputs) in (1..).zip(&scenario.before) {
        let request = running.stage(attempt, outputs).await;
        running.publish(&request).await.unwrap();
    }
    for (name, data) in &scenario.person {
        rig.share().replace(&format!("out/{name}"), data);
    }
    // What an earlier run made: else a place that nobody may change takes no publish at all.
    running.place.export.make_directory(&running.place.staged_directory()).await.unwrap();
    for directory in &scenario.forbidden {
        rig.share().forbid(directory);
    }
    rig
}

#[tokio::test]
async fn killed_at_every_call_it_rolls_forward() {
    for link in [true, false] {
        for scenario in scenarios() {
            let rig = prepared(&scenario, link).await;
            let running = rig.start();
            let request = running.stage(7, &scenario.outputs).await;
            let response = running.publish(&request).await.unwrap();
            let expected = rig.summary().await;
            let outcomes = running.outcomes(&response).await;
            assert!(expected.staged.is_empty() && expected.open == 0, "{}", scenario.name);

            let mut points = 0;
            'points: for at in 0.. {
                for ending in [Ending::NotDone, Ending::ReplyLost] {
                    for losing in [false, true] {
                        let what = format!("{}, links {link}, call {at} {ending:?}, losing {losing}", scenario.name);
                        let rig = prepared(&scenario, link).await;
                        let running = rig.start();
                        let request = running.stage(7, &scenario.outputs).await;
                        running.plan.crash_at(at, ending);
                        let answer = running.publish(&request).await;
                        if !running.plan.crashed() {
                            assert_eq!(answer.unwrap(), response, "{what}");
                            break 'points;
                        }
                        if losing {
                            rig.nas.lose_uncommitted();
                            rig.state.lose_uncommitted();
                        }
                        points += 1;
                        let again = rig.start();
                        let answer = again.publish(&request).await.unwrap_or_else(|p| panic!("{what}: {p}"));
                        assert_eq!(again.outcomes(&answer).await, outcomes, "{what}");
                        assert_eq!(
                            (answer.published, answer.conflict, answer.removed),
                            (response.published, response.conflict, response.removed),
                            "{what}"
                        );
                        assert_eq!(rig.summary().await, expected, "{what}");
                        // And once more: the same answer, nothing done twice.
                        assert_eq!(again.publish(&request).await.unwrap(), answer, "{what}");
                        assert_eq!(rig.start().publish(&request).await.unwrap(), answer, "{what}");
                        assert_eq!(rig.summary().await, expected, "{what}");
                    }
                }
            }
            assert!(points > 20, "{}: {points} points are too few to be true", scenario.name);
        }
    }
}

#[tokio::test]
async fn killed_twice_it_still_rolls_forward() {
    for link in [true, false] {
        for scenario in scenarios().into_iter().filter(|s| s.name != "batch") {
            let rig = prepared(&scenario, link).await;
            let running = rig.start();
            let request = running.stage(7, &scenario.outputs).await;
            running.publish(&request).await.unwrap();
            let expected = rig.summary().await;
            'first: for first in 0.. {
                for second in 0.. {
                    for ending in [Ending::NotDone, Ending::ReplyLost] {
                        let what = format!("{}, links {link}, calls {first} and {second}, {ending:?}", scenario.name);
                        let rig = prepared(&scenario, link).await;
                        let running = rig.start();
                        let request = running.stage(7, &scenario.outputs).await;
                        running.plan.crash_at(first, ending);
                        let _ = running.publish(&request).await;
                        if !running.plan.crashed() {
                            break 'first;
                        }
                        let again = rig.start();
                        again.plan.crash_at(second, ending);
                        let _ = again.publish(&request).await;
                        let over = !again.plan.crashed();
                        rig.start().publish(&request).await.unwrap_or_else(|p| panic!("{what}: {p}"));
                        assert_eq!(rig.summary().await, expected, "{what}");
                        if over && ending == Ending::ReplyLost {
                            continue 'first;
                        }
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_start_finishes_what_was_begun_without_being_asked() {
    let scenario = &scenarios()[3];
    let before = prepared(scenario, true).await.visible();
    let mut seen = 0;
    // Killed at every call, then only the ledger is opened, as a start and a scan do.
    for at in 0.. {
        let rig = prepared(scenario, true).await;
        let running = rig.start();
        let request = running.stage(7, &scenario.outputs).await;
        running.plan.crash_at(at, Ending::ReplyLost);
        let _ = running.publish(&request).await;
        if !running.plan.crashed() {
            break;
        }
        assert_eq!(rig.start().publisher.known_places().unwrap().len(), 1);
        let summary = rig.summary().await;
        assert_eq!(summary.open, 0);
        if summary.visible["a.json"] == b"new" {
            seen += 1;
        } else {
            // Killed before the intent was durable: nothing was promised.
            assert_eq!(summary.visible, before);
        }
    }
    assert!(seen > 5);
}

#[tokio::test]
async fn outcomes_are_told_as_they_are() {
    let rig = Rig::new(true);
    let running = rig.start();
    rig.nas.replace("out/theirs.json", b"a person's");
    rig.nas.replace("out/file", b"a person's");
    let request = running
        .stage(7, &[Show("new.json", b"1"), Show("theirs.json", b"2"), Show("file/x.json", b"3"), Remove("never.json")])
        .await;
    let response = running.publish(&request).await.unwrap();
    assert_eq!((response.published, response.conflict, response.removed), (1, 2, 1));
    let outcomes = running.outcomes(&response).await;
    assert_eq!(outcomes["new.json"], (ItemOutcome::Published, String::new()));
    assert_eq!(outcomes["theirs.json"], (ItemOutcome::Conflict, "theirs.json.conflict-7".into()));
    assert_eq!(outcomes["file/x.json"], (ItemOutcome::Conflict, "file--x.json.conflict-7".into()));
    assert_eq!(outcomes["never.json"].0, ItemOutcome::Deleted);
    let visible = rig.visible();
    assert_eq!(visible["theirs.json"], b"a person's");
    assert_eq!(visible["theirs.json.conflict-7"], b"2");
    assert_eq!(visible["file--x.json.conflict-7"], b"3");
    assert_eq!(visible["file"], b"a person's");
}

#[tokio::test]
async fn an_older_leader_publishes_nothing() {
    let rig = Rig::new(true);
    let running = rig.start();
    let mut newer = running.stage(1, &[Show("a.json", b"1")]).await;
    newer.epoch = Epoch { generation: 1, revision: 9 };
    running.publish(&newer).await.unwrap();
    let older = running.stage(2, &[Show("a.json", b"2")]).await;
    assert_eq!(running.publish(&older).await.unwrap_err().code, ErrorCode::EpochStale);
    // Nor after a restart: the highest epoch is on disk.
    assert_eq!(rig.start().publish(&older).await.unwrap_err().code, ErrorCode::EpochStale);
    assert_eq!(rig.visible()["a.json"], b"1");
}

#[tokio::test]
async fn manifests_that_cannot_be_are_refused_before_anything_happens() {
    let rig = Rig::new(true);
    let running = rig.start();
    let good = running.stage(1, &[Show("a.json", b"1")]).await;
    let manifest: ingle_proto::v1::ResultManifest = running.blobs.message("m", &good.manifest).await.unwrap();
    type Change = fn(&mut ingle_proto::v1::ResultManifest);
    let cases: Vec<(&str, ErrorCode, Change)> = vec![
        ("leaves the place", ErrorCode::PathRefused, |m| m.outputs[0].name = "../a".into()),
        ("absolute", ErrorCode::PathRefused, |m| m.outputs[0].name = "/etc/passwd".into()),
        ("empty", ErrorCode::PathRefused, |m| m.outputs[0].name = "".into()),
        ("ours", ErrorCode::PathRefused, |m| m.outputs[0].name = ".inglenook/ledger/log/x".into()),
        ("ours, deeper", ErrorCode::PathRefused, |m| m.outputs[0].name = "a/.inglenook/x".into()),
        ("staged elsewhere", ErrorCode::InvalidArgument, |m| m.outputs[0].staged_name = "../../x".into()),
        ("digest", ErrorCode::InvalidArgument, |m| m.outputs[0].digest = "short".into()),
        ("size", ErrorCode::DigestMismatch, |m| m.outputs[0].size = 99),
        ("not staged", ErrorCode::ObjectNotFound, |m| m.outputs[0].staged_name = "other".into()),
        ("keep and remove", ErrorCode::InvalidArgument, |m| {
            m.outputs[0].keep = true;
            m.outputs[0].remove = true;
        }),
        ("twice", ErrorCode::InvalidArgument, |m| {
            let again = m.outputs[0].clone();
            m.outputs.push(again);
        }),
        ("shared staged file", ErrorCode::InvalidArgument, |m| {
            let mut again = m.outputs[0].clone();
            again.name = "b.json".into();
            m.outputs.push(again);
        }),
        ("input", ErrorCode::PathRefused, |m| m.outputs[0].inputs[0].name = "../x".into()),
    ];
    for (what, code, change) in cases {
        let mut manifest = manifest.clone();
        change(&mut manifest);
        let blob = running.blobs.put(&prost::Message::encode_to_vec(&manifest).into()).await.unwrap();
        let request = Request { manifest: blob, ..good.clone() };
        let problem = running.publish(&request).await.expect_err(what);
        assert_eq!(problem.code, code, "{what}: {problem}");
    }
    assert!(rig.visible().is_empty());
    assert_eq!(rig.summary().await.open, 0);
    running.publish(&good).await.unwrap();
}

#[tokio::test]
async fn a_store_begun_anew_meets_no_old_names() {
    let rig = Rig::new(true);
    let running = rig.start();
    let first = running.stage(1, &[Show("a.json", b"1")]).await;
    running.publish(&first).await.unwrap();
    let second = running.stage(2, &[Show("a.json", b"2")]).await;
    running.publish(&second).await.unwrap();
    // The same job and attempt numbers, other results.
    let other = running.stage(2, &[Show("a.json", b"3")]).await;
    assert_ne!(other.manifest, second.manifest);
    let response = running.publish(&other).await.unwrap();
    assert_eq!((response.published, response.conflict), (1, 0));
    assert_eq!(rig.visible()["a.json"], b"3");
    assert_eq!(rig.summary().await.trash.len(), 2, "each replacement has its own trash name");
    // The very same results too: what the old store published says nothing of what is to be seen now.
    rig.nas.delete("out/a.json");
    let anew =
        Request { epoch: Epoch { generation: 2, revision: 1 }, ..running.stage(2, &[Show("a.json", b"3")]).await };
    assert_eq!(anew.manifest, other.manifest);
    let response = running.publish(&anew).await.unwrap();
    assert_eq!((response.published, response.conflict), (1, 0));
    assert_eq!(rig.visible()["a.json"], b"3");
    // A new leader of the same store asks again, and nothing is done twice.
    rig.nas.delete("out/a.json");
    let led = Request { epoch: Epoch { generation: 2, revision: 9 }, ..anew };
    assert_eq!(running.publish(&led).await.unwrap(), response);
    assert!(rig.visible().is_empty());
}

#[tokio::test]
async fn publishes_to_one_place_take_turns() {
    let rig = Rig::new(true);
    let running = rig.start();
    let mut requests = Vec::new();
    for attempt in 1..=20 {
        requests.push(running.stage(attempt, &[Show("a.json", b"same name"), Show("b.json", b"x")]).await);
    }
    let all = requests.iter().map(|request| running.publish(request));
    for answer in futures::future::join_all(all).await {
        assert_eq!(answer.unwrap().published, 2);
    }
    let summary = rig.summary().await;
    assert_eq!(summary.visible.len(), 2);
    assert!(summary.staged.is_empty());
}
