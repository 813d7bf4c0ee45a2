//! The life of children: reused, replaced, ended at deadlines and by others, never left behind.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use image::ImageFormat;
use ingle_parse::{ErrorKind, Host, Limits};

use crate::hostile_pdfs::multiplying;
use crate::make::pdf::{Page, document, text};
use crate::make::picture::{encoded, upright};
use crate::{host_with, pixels, words};

fn good() -> Vec<u8> {
    encoded(upright(), ImageFormat::Png)
}

fn patient() -> Limits {
    Limits { children_max: 1, open: Duration::from_secs(300), page: Duration::from_secs(300), ..Limits::default() }
}

/// A host whose children can be told from those of other tests by `mark`.
fn marked(mark: &str, limits: Limits) -> Host {
    Host::new(env!("CARGO_BIN_EXE_parse-worker-test").into(), vec![mark.into()], limits)
}

/// Process numbers of living children with that mark on their command line.
fn living(mark: &str) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux");
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|number: &u32| {
            let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0);
            words.next().is_some_and(|program| program.ends_with(b"parse-worker-test"))
                && words.any(|word| word == mark.as_bytes())
        })
        .collect()
}

/// Waits for something that must come; gives up after a long while.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn one_child_serves_many_documents_and_is_replaced_in_time() {
    let host = marked("many", Limits { documents_per_child: 3, ..patient() });
    assert_eq!(host.children(), 0, "nothing is started before it is needed");
    let mut seen = Vec::new();
    for _ in 0..7 {
        let mut opened = host.open(&good(), "a.png").expect("opens");
        pixels(opened.page(0, 200.0).expect("a page"));
        seen.extend(living("many"));
    }
    assert_eq!(seen.len(), 7, "one at a time");
    seen.dedup();
    assert_eq!(seen.len(), 3, "three documents each: {seen:?}");
}

#[test]
fn children_end_with_their_host() {
    let host = marked("ends", Limits { children_max: 3, ..patient() });
    let first = host.open(&good(), "a.png").expect("opens");
    let second = host.open(&good(), "b.png").expect("opens");
    assert_eq!((host.children(), living("ends").len()), (2, 2));
    drop(second);
    assert_eq!(host.children(), 2, "one rests");
    drop(host);
    drop(first);
    assert!(living("ends").is_empty(), "ended and waited for");
}

#[test]
fn a_deadline_ends_the_child_and_the_next_document_has_another() {
    let host = marked("late", Limits { page: Duration::from_millis(700), ..patient() });
    let mut slow = host.open(&multiplying(), "slow.pdf").expect("opens");
    let before = living("late");
    let error = slow.page(0, 72.0).expect_err("takes for ever");
    assert_eq!(error.kind, ErrorKind::TimedOut, "{error}");
    assert_eq!((host.children(), living("late").len()), (0, 0), "killed and waited for");
    drop(slow);
    let patient = marked("late", patient());
    pixels(patient.open(&good(), "a.png").expect("opens").page(0, 200.0).expect("a page"));
    assert_ne!(living("late"), before);
}

#[test]
fn processor_time_is_bounded_for_each_call() {
    let host = host_with(Limits { cpu_s: 1, ..patient() });
    let error = host.open(&multiplying(), "slow.pdf").expect("opens").page(0, 72.0).expect_err("takes for ever");
    assert_eq!(error.kind, ErrorKind::TimedOut);
    assert!(error.message.contains("processor"), "{error}");
}

#[test]
fn a_killed_child_costs_one_page_and_the_document_goes_on() {
    let host = marked("killed", patient());
    let pages: Vec<Page> =
        (0..3).map(|at| Page { content: text(&[&format!("Page number {at}")]), ..Page::default() }).collect();
    let mut opened = host.open(&document(&pages), "a.pdf").expect("opens");
    assert_eq!(words(opened.page(0, 100.0).expect("a page")).plain(), "Page number 0\n");
    for _ in 0..4 {
        let [child] = living("killed")[..] else { panic!("one child") };
        Command::new("kill").args(["-9", &child.to_string()]).status().expect("kill runs");
        let error = opened.page(1, 100.0).expect_err("its child is dead");
        assert_eq!(error.kind, ErrorKind::Crashed { signal: 9 }, "{error}");
        assert_eq!(words(opened.page(1, 100.0).expect("a new child")).plain(), "Page number 1\n");
    }
    drop(opened);
    // One that kills its child whatever is asked of it is given up.
    let mut limits = patient();
    limits.page = Duration::from_millis(300);
    let hasty = marked("hasty", limits);
    let mut slow = hasty.open(&multiplying(), "slow.pdf").expect("opens");
    for _ in 0..3 {
        assert_eq!(slow.page(0, 72.0).expect_err("takes for ever").kind, ErrorKind::TimedOut);
    }
    let error = slow.page(0, 72.0).expect_err("given up");
    assert!(error.message.contains("3 times"), "{error}");
    assert_eq!(hasty.children(), 0);
    // A child that was killed while it rested is nobody's fault.
    pixels(host.open(&good(), "a.png").expect("opens").page(0, 200.0).expect("a page"));
    let [child] = living("killed")[..] else { panic!("one child") };
    Command::new("kill").args(["-9", &child.to_string()]).status().expect("kill runs");
    eventually("the kernel ends it", || {
        !std::fs::read_to_string(format!("/proc/{child}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    });
    pixels(host.open(&good(), "a.png").expect("opens").page(0, 200.0).expect("a page"));
}

#[test]
fn a_child_told_to_end_is_no_fault_of_the_document() {
    let host = marked("told", patient());
    let mut opened = host.open(&document(&[Page::default()]), "a.pdf").expect("opens");
    let [child] = living("told")[..] else { panic!("one child") };
    Command::new("kill").args(["-15", &child.to_string()]).status().expect("kill runs");
    let error = opened.page(0, 100.0).expect_err("its child is dead");
    assert!(!error.blames_document(), "{error:?}");
}

#[test]
fn more_documents_than_children_wait_their_turn() {
    let host = host_with(Limits { wait: Duration::from_millis(50), ..patient() });
    let held = host.open(&good(), "a.png").expect("opens");
    let error = host.open(&good(), "b.png").expect_err("no child is free");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("busy"), "{error}");
    drop(held);
    host.open(&good(), "b.png").expect("now one is");
    let host = host_with(Limits { children_max: 2, ..patient() });
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| pixels(host.open(&good(), "a.png").expect("opens").page(0, 200.0).expect("a page")));
        }
    });
    assert!((1..=2).contains(&host.children()));
}

#[test]
fn programs_that_are_no_worker_are_the_hosts_fault() {
    for (program, args) in
        [("/nowhere/at/all", vec![]), ("/bin/false", vec![]), ("/bin/sh", vec!["-c", "kill -SEGV $$"])]
    {
        let host = Host::new(PathBuf::from(program), args.into_iter().map(Into::into).collect(), patient());
        let error = host.open(&good(), "a.png").expect_err(program);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{program}: {error}");
        assert!(error.message.contains(program), "{error}");
        assert_eq!(host.children(), 0);
    }
}

/// Compiles only if hosts may be shared between threads, and documents handed to them.
#[test]
fn hosts_and_documents_go_to_other_threads() {
    fn shared<T: Send + Sync>() {}
    fn sent<T: Send>() {}
    shared::<Host>();
    sent::<ingle_parse::Document>();
}

#[test]
fn documents_beyond_the_bound_are_not_sent() {
    let host = host_with(Limits { document_bytes_max: 50, ..patient() });
    let error = host.open(&good(), "a.png").expect_err("too long");
    assert_eq!(error.kind, ErrorKind::TooLarge);
    assert_eq!(host.children(), 0);
}

/// A document in a file, open for reading alone.
fn in_file(bytes: &[u8], more: u64) -> Arc<std::fs::File> {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("document");
    std::fs::write(&path, bytes).expect("room for a document");
    let file = std::fs::File::options().append(true).open(&path).expect("a file");
    file.set_len(bytes.len() as u64 + more).expect("a hole needs no room");
    Arc::new(std::fs::File::open(path).expect("a file"))
}

#[test]
fn a_document_in_a_file_leaves_the_memory_for_parsing() {
    // 300 MiB of which all but the beginning is nothing, and 256 MiB to parse with.
    let host = host_with(Limits { memory_bytes: 256 << 20, ..patient() });
    let mut opened = host.open_file(in_file(&good(), 300 << 20), "a.png").expect("opens");
    assert!(opened.page(0, 200.0).is_ok());
    let host = host_with(Limits { document_bytes_max: 1 << 20, ..patient() });
    let error = host.open_file(in_file(&good(), 1 << 20), "a.png").expect_err("too long");
    assert_eq!(error.kind, ErrorKind::TooLarge);
}

#[test]
fn a_file_that_could_be_written_is_no_document() {
    let mut file = tempfile::tempfile().expect("a file");
    std::io::Write::write_all(&mut file, &good()).expect("room for a document");
    let error = host_with(patient()).open_file(Arc::new(file), "a.png").expect_err("open for writing");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
}

#[test]
fn pages_beyond_the_last_are_refused_without_a_child() {
    let host = host_with(patient());
    let mut opened = host.open(&good(), "a.png").expect("opens");
    let error = opened.page(1, 200.0).expect_err("there is one");
    assert!(error.message.contains("1 pages"), "{error}");
    for dpi in [f32::NAN, f32::INFINITY, -1.0, 0.0, 1e30] {
        assert!(opened.page(0, dpi).is_ok(), "{dpi}");
    }
}

/// Set for the process that [`a_host_that_is_killed_takes_its_children_along`] starts and kills.
const PLAYS_HOST: &str = "INGLE_PARSE_TEST_PLAYS_HOST";

/// Not a test of its own: what the next one runs in another process, which works at something endless until it is killed.
#[test]
fn plays_a_host_that_is_killed() {
    if std::env::var_os(PLAYS_HOST).is_none() {
        return;
    }
    let host = marked("orphan", patient());
    let mut slow = host.open(&multiplying(), "slow.pdf").expect("opens");
    println!("working");
    let _ = slow.page(0, 72.0);
}

#[test]
fn a_host_that_is_killed_takes_its_children_along() {
    let mut parent = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "children::plays_a_host_that_is_killed", "--nocapture"])
        .env(PLAYS_HOST, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut said = String::new();
    let mut stdout = parent.stdout.take().expect("piped");
    while !said.contains("working") {
        let mut byte = [0];
        assert_eq!(stdout.read(&mut byte).expect("readable"), 1, "it said only {said:?}");
        said.push(char::from(byte[0]));
    }
    eventually("its child is there", || living("orphan").len() == 1);
    parent.kill().expect("alive");
    parent.wait().expect("it was ours");
    eventually("the child dies with it", || living("orphan").is_empty());
}
