//! A person who edits, replaces, creates, moves or deletes between any two steps never loses a byte.

use proptest::prelude::*;

use crate::memory::Memory;
use crate::plan::Ending;
use crate::publish::{Scenario, prepared, scenarios};
use crate::rig::{Output, Rig};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    /// Writes into the file in place, if there is one.
    Edit,
    /// Saves another file under the name.
    Replace,
    /// Makes a file, if there is none.
    Create,
    /// Deletes it, and makes another.
    Recreate,
    /// Deletes it.
    Delete,
}

const DEEDS: [Deed; 5] = [Deed::Edit, Deed::Replace, Deed::Create, Deed::Recreate, Deed::Delete];

/// What people wrote and did not overwrite or delete themselves, and whether they did away with our result.
#[derive(Debug, Default)]
struct Record {
    theirs: Vec<Vec<u8>>,
    undone: Vec<Vec<u8>>,
}

fn perform(deed: Deed, nas: &Memory, path: &str, bytes: &[u8], record: &mut Record) {
    let present = nas.get(path);
    let writes = match deed {
        Deed::Edit => present.is_some(),
        Deed::Create => present.is_none(),
        Deed::Replace | Deed::Recreate => true,
        Deed::Delete => false,
    };
    if !writes && deed != Deed::Delete {
        return;
    }
    if let Some(gone) = present {
        // By their own hand.
        record.theirs.retain(|kept| *kept != gone);
        record.undone.push(gone);
    }
    match deed {
        Deed::Edit => {
            nas.edit(path, bytes);
        }
        Deed::Replace | Deed::Create => nas.replace(path, bytes),
        Deed::Recreate => {
            nas.delete(path);
            nas.replace(path, bytes);
        }
        Deed::Delete => {
            nas.delete(path);
        }
    }
    if writes {
        record.theirs.push(bytes.to_vec());
    }
}

fn check(rig: &Rig, scenario: &Scenario, record: &Record, what: &str) {
    let visible = rig.visible();
    for theirs in &record.theirs {
        assert!(
            visible.values().any(|data| data == theirs),
            "{what}: lost {:?}; there are {visible:?}",
            String::from_utf8_lossy(theirs)
        );
    }
    for output in &scenario.outputs {
        // Our result is there too, under its name or beside, unless somebody did away with it.
        if let Output::Show(name, data) = output
            && !record.undone.iter().any(|gone| gone == data)
        {
            let base = name.rsplit('/').next().unwrap();
            let ours = visible
                .iter()
                .any(|(n, d)| d == data && (n == name || (n.contains(base) && n.contains(".conflict-7"))));
            assert!(ours, "{what}: our {name} is nowhere; there are {visible:?}");
        }
    }
}

#[tokio::test]
async fn whatever_a_person_does_between_two_calls_nothing_is_lost() {
    for link in [true, false] {
        for scenario in scenarios()
            .into_iter()
            .filter(|s| !s.outputs.iter().any(|o| matches!(o, Output::Keep(_))) || s.name == "batch")
        {
            for deed in DEEDS {
                for target in scenario.outputs.iter().map(Output::name) {
                    if scenario.name == "a file where a directory is needed" {
                        continue;
                    }
                    for at in 0.. {
                        let what = format!("{}, links {link}, {deed:?} {target} before call {at}", scenario.name);
                        let rig = prepared(&scenario, link).await;
                        let running = rig.start();
                        let request = running.stage(7, &scenario.outputs).await;
                        let record = std::sync::Arc::new(std::sync::Mutex::new(Record::default()));
                        for (_, theirs) in &scenario.person {
                            record.lock().unwrap().theirs.push(theirs.to_vec());
                        }
                        let (seen, path) = (record.clone(), format!("out/{target}"));
                        running.plan.act_at(at, move |nas| {
                            perform(deed, nas, &path, b"a person's", &mut seen.lock().unwrap());
                        });
                        if let Err(problem) = running.publish(&request).await {
                            assert!(problem.retryable(), "{what}: {problem}");
                            running.publish(&request).await.unwrap_or_else(|p| panic!("{what}: {p}"));
                        }
                        check(&rig, &scenario, &record.lock().unwrap(), &what);
                        let summary = rig.summary().await;
                        assert!(summary.staged.is_empty() && summary.open == 0, "{what}: {summary:?}");
                        if !running.plan.acted() {
                            break;
                        }
                    }
                }
            }
        }
    }
}

/// As above, with a crash somewhere, people before, between and after, and rolling forward at the end.
#[tokio::test]
async fn a_person_and_a_crash_at_every_pair_of_points() {
    for link in [true, false] {
        for scenario in
            scenarios().into_iter().filter(|s| ["first", "replace", "remove", "edited since"].contains(&s.name))
        {
            for deed in DEEDS {
                'crash: for crash in 0.. {
                    for at in (0..).step_by(2) {
                        let what = format!("{}, links {link}, {deed:?} at {at}, crash at {crash}", scenario.name);
                        let rig = prepared(&scenario, link).await;
                        let record = std::sync::Arc::new(std::sync::Mutex::new(Record::default()));
                        for (_, theirs) in &scenario.person {
                            record.lock().unwrap().theirs.push(theirs.to_vec());
                        }
                        let running = rig.start();
                        let request = running.stage(7, &scenario.outputs).await;
                        running.plan.crash_at(crash, Ending::ReplyLost);
                        let _ = running.publish(&request).await;
                        if !running.plan.crashed() {
                            break 'crash;
                        }
                        // The person acts while the next run recovers.
                        let again = rig.start();
                        let seen = record.clone();
                        again.plan.act_at(at, move |nas| {
                            perform(deed, nas, "out/a.json", b"a person's", &mut seen.lock().unwrap());
                        });
                        if let Err(problem) = again.publish(&request).await {
                            assert!(problem.retryable(), "{what}: {problem}");
                            again.publish(&request).await.unwrap_or_else(|p| panic!("{what}: {p}"));
                        }
                        check(&rig, &scenario, &record.lock().unwrap(), &what);
                        if !again.plan.acted() {
                            break;
                        }
                    }
                }
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Run {
    crash: Option<(u64, bool)>,
    deeds: Vec<(u64, usize, usize)>,
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let run = (
        proptest::option::weighted(0.7, (0_u64..60, any::<bool>())),
        proptest::collection::vec((0_u64..120, 0_usize..DEEDS.len(), 0_usize..8), 0..4),
    );
    proptest::collection::vec(run.prop_map(|(crash, deeds)| Run { crash, deeds }), 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(20), ..ProptestConfig::default() })]

    #[test]
    fn any_interleaving_of_people_and_crashes_loses_nothing(which in 0_usize..12, link in any::<bool>(), runs in runs()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scenario = &scenarios()[which];
            let rig = prepared(scenario, link).await;
            let record = std::sync::Arc::new(std::sync::Mutex::new(Record::default()));
            for (_, theirs) in &scenario.person {
                record.lock().unwrap().theirs.push(theirs.to_vec());
            }
            let request = rig.start().stage(7, &scenario.outputs).await;
            let mut written = 0;
            for run in &runs {
                let running = rig.start();
                if let Some((at, done)) = run.crash {
                    running.plan.crash_at(at, if done { Ending::ReplyLost } else { Ending::NotDone });
                }
                for (at, deed, target) in &run.deeds {
                    written += 1;
                    let output = &scenario.outputs[target % scenario.outputs.len()];
                    // The result's name, or the one beside it.
                    let path = format!("out/{}{}", output.name(), if *target >= 6 { ".conflict-7" } else { "" });
                    if scenario.name == "a file where a directory is needed" {
                        continue;
                    }
                    let (seen, deed, bytes) = (record.clone(), DEEDS[*deed], format!("a person's {written}"));
                    running.plan.act_at(*at, move |nas| {
                        perform(deed, nas, &path, bytes.as_bytes(), &mut seen.lock().unwrap());
                    });
                }
                let _ = running.publish(&request).await;
            }
            let last = rig.start();
            let answer = last.publish(&request).await.unwrap();
            let visible = rig.visible();
            for theirs in &record.lock().unwrap().theirs {
                prop_assert!(
                    visible.values().any(|data| data == theirs),
                    "lost {:?}; there are {visible:?}", String::from_utf8_lossy(theirs)
                );
            }
            let summary = rig.summary().await;
            prop_assert!(summary.open == 0 && summary.staged.is_empty());
            prop_assert_eq!(rig.start().publish(&request).await.unwrap(), answer);
            prop_assert_eq!(rig.summary().await, summary);
            Ok(())
        })?;
    }
}
