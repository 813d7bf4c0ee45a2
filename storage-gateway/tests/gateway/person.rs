//! A person who edits, replaces, creates, moves or deletes between any two steps never loses a byte.

use proptest::prelude::*;

use crate::plan::Ending;
use crate::publish::{Scenario, prepared, prepared_on, scenarios};
use crate::rig::{Output, Rig};
use crate::share::{Odd, Share};

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
    /// Puts a symbolic link there.
    Symlink,
    /// Puts a FIFO there.
    Fifo,
    /// Puts a directory there.
    Directory,
    /// Lets nobody change the directory any more.
    Forbid,
}

const DEEDS: [Deed; 9] = [
    Deed::Edit,
    Deed::Replace,
    Deed::Create,
    Deed::Recreate,
    Deed::Delete,
    Deed::Symlink,
    Deed::Fifo,
    Deed::Directory,
    Deed::Forbid,
];

/// What people wrote and did not overwrite or delete themselves, and whether they did away with our result.
#[derive(Debug, Default)]
struct Record {
    theirs: Vec<Vec<u8>>,
    /// Their symbolic links and FIFOs.
    odd: Vec<u64>,
    undone: Vec<Vec<u8>>,
    /// Directories that nobody may change any more.
    forbidden: Vec<String>,
}

impl Record {
    fn of(scenario: &Scenario) -> Self {
        Self {
            theirs: scenario.person.iter().map(|(_, theirs)| theirs.to_vec()).collect(),
            forbidden: scenario.forbidden.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }
}

fn perform(deed: Deed, nas: &dyn Share, path: &str, bytes: &[u8], record: &mut Record) {
    if deed == Deed::Forbid {
        let directory = path.rsplit_once('/').unwrap().0;
        nas.forbid(directory);
        record.forbidden.push(directory.to_owned());
        return;
    }
    if nas.is_directory(path) {
        if deed == Deed::Delete {
            nas.delete(path);
        }
        return;
    }
    let (present, odd) = (nas.get(path), nas.odd(path));
    let acts = match deed {
        Deed::Edit => present.is_some(),
        Deed::Create => present.is_none() && odd.is_none(),
        _ => true,
    };
    if !acts {
        return;
    }
    // By their own hand.
    record.odd.retain(|kept| Some(*kept) != odd);
    if let Some(gone) = present {
        record.theirs.retain(|kept| *kept != gone);
        record.undone.push(gone);
    }
    let mut put = |what| {
        nas.delete(path);
        nas.make(path, what);
        record.odd.extend(nas.odd(path));
    };
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
        Deed::Symlink => put(Odd::Symlink),
        Deed::Fifo => put(Odd::Fifo),
        Deed::Directory => put(Odd::Directory),
        Deed::Forbid => unreachable!("done above"),
    }
    if matches!(deed, Deed::Edit | Deed::Replace | Deed::Create | Deed::Recreate) {
        record.theirs.push(bytes.to_vec());
    }
}

/// What people made and can't find, neither in the place nor, if the place itself takes nothing, where such things are
/// kept for them.
fn lost(rig: &Rig, record: &Record) -> Option<String> {
    let closed = record.forbidden.iter().any(|directory| directory == "out");
    let found = |path: &str| !path.contains(".inglenook") || (closed && path.contains(".inglenook/kept/"));
    let files = rig.share().files(true);
    for theirs in &record.theirs {
        if !files.iter().any(|(path, data)| found(path) && data == theirs) {
            return Some(format!("lost {:?}; there are {files:?}", String::from_utf8_lossy(theirs)));
        }
    }
    let odd = rig.share().oddities();
    let missing = record.odd.iter().find(|id| !odd.iter().any(|(path, there)| found(path) && there == *id));
    missing.map(|id| format!("lost the link or FIFO {id}; there are {odd:?}"))
}

fn check(rig: &Rig, scenario: &Scenario, record: &Record, what: &str) {
    if let Some(lost) = lost(rig, record) {
        panic!("{what}: {lost}");
    }
    if record.forbidden.iter().any(|directory| directory == "out") {
        return;
    }
    let visible = rig.visible();
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
                        let record = std::sync::Arc::new(std::sync::Mutex::new(Record::of(&scenario)));
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
                        let record = std::sync::Arc::new(std::sync::Mutex::new(Record::of(&scenario)));
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

/// The same over our own server and client, where names and handles are real: a reduced set, each crash with each deed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_and_a_crash_over_nfs() {
    let deeds = [Deed::Edit, Deed::Replace, Deed::Recreate, Deed::Delete, Deed::Symlink, Deed::Fifo, Deed::Directory];
    for scenario in scenarios().into_iter().filter(|s| ["first", "replace", "edited since"].contains(&s.name)) {
        for deed in deeds {
            for crash in (0..).step_by(5) {
                let rig = prepared_on(Rig::over_nfs().await, &scenario).await;
                let record = std::sync::Arc::new(std::sync::Mutex::new(Record::of(&scenario)));
                let running = rig.start();
                let request = running.stage(7, &scenario.outputs).await;
                running.plan.crash_at(crash, Ending::ReplyLost);
                // Before a call that differs with each crash, so that all are met.
                let at = crash * 3 % 23;
                let what = format!("{} over NFS, {deed:?} at {at}, crash at {crash}", scenario.name);
                let seen = record.clone();
                running.plan.act_at(at, move |nas| {
                    perform(deed, nas, "out/a.json", b"a person's", &mut seen.lock().unwrap());
                });
                let _ = running.publish(&request).await;
                if !running.plan.crashed() {
                    break;
                }
                let again = rig.start();
                let seen = record.clone();
                again.plan.act_at(at, move |nas| {
                    perform(deed, nas, "out/a.json", b"a person's too", &mut seen.lock().unwrap());
                });
                if let Err(problem) = again.publish(&request).await {
                    assert!(problem.retryable(), "{what}: {problem}");
                    again.publish(&request).await.unwrap_or_else(|p| panic!("{what}: {p}"));
                }
                check(&rig, &scenario, &record.lock().unwrap(), &what);
                let summary = rig.summary().await;
                assert!(summary.staged.is_empty() && summary.open == 0, "{what}: {summary:?}");
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
    fn any_interleaving_of_people_and_crashes_loses_nothing(which in 0..scenarios().len(), link in any::<bool>(), runs in runs()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let scenario = &scenarios()[which];
            let rig = prepared(scenario, link).await;
            let record = std::sync::Arc::new(std::sync::Mutex::new(Record::of(scenario)));
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
            prop_assert_eq!(lost(&rig, &record.lock().unwrap()), None);
            let summary = rig.summary().await;
            prop_assert!(summary.open == 0 && summary.staged.is_empty());
            prop_assert_eq!(rig.start().publish(&request).await.unwrap(), answer);
            prop_assert_eq!(rig.summary().await, summary);
            Ok(())
        })?;
    }
}
