//! Explanations: why here, why not there, why it left; in figures that are never below zero.

use ingle_coordinator::core::Event;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, JobKind};

use super::{JOB, Rig, node};

fn never_negative(terms: &v1::NodeTerms) {
    for ms in [terms.backlog_ms, terms.load_ms, terms.prefill_ms, terms.output_ms, terms.finish_ms] {
        assert!(ms.is_sign_positive(), "{terms:?}");
    }
}

#[test]
fn a_job_says_why_it_runs_where_it_runs() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    let at = rig.job(JobKind::Generate, &[4]).remove(0);
    let explained = rig.core.explain(JOB).unwrap();
    let batch = &explained.batches[0];
    assert_eq!(batch.node_id, at.node.to_string());
    for part in ["of 2 nodes", "would be done first", "backlog 0.0 s", "the next is"] {
        assert!(batch.why_here.contains(part), "{part}: {}", batch.why_here);
    }
    let terms = batch.terms.as_ref().unwrap();
    never_negative(terms);
    assert!(terms.load_ms > 0.0 && terms.finish_ms >= terms.load_ms, "{terms:?}");
    assert_eq!(explained.nodes.len(), 2);
    explained.nodes.iter().for_each(never_negative);
}

#[test]
fn a_job_says_which_node_is_refused_for_what_with_the_numbers() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.attach(2, &[]);
    rig.attach(3, &[]);
    rig.job(JobKind::Generate, &[4]);
    rig.drain(1, 0);
    rig.pass(3_400, &[1, 3]);
    let explained = rig.core.explain(JOB).unwrap();
    let why = |number: u32| {
        let terms = explained.nodes.iter().find(|terms| terms.node_id == format!("n-{number}")).unwrap();
        (terms.fits, terms.why_not.clone())
    };
    assert_eq!(why(1), (false, "it is draining".into()));
    assert!(why(2).1.ends_with("last heard 3.4 s ago"), "{:?}", why(2));
    assert_eq!(why(3), (true, String::new()));
}

#[test]
fn a_model_says_what_would_leave_for_it_and_why_it_left() {
    const MB: u64 = 1_000_000;
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    let models: Vec<v1::ModelInfo> = rig.core.models().into_iter().filter_map(|status| status.info).collect();
    let loaded = |name: &str, last_used_ms: i64, in_use: bool| v1::LoadedModel {
        model: Some(v1::ModelRef { name: name.into(), ..Default::default() }),
        memory_bytes: 100 * MB,
        last_used_ms,
        in_use,
        ..Default::default()
    };
    let gone = v1::Eviction {
        model: Some(v1::ModelRef { name: "words".into(), ..Default::default() }),
        made_room_for: "pages".into(),
        reason: "it was the longest unused".into(),
        bytes: 90 * MB,
        at_ms: 5,
    };
    rig.budget(1, 250 * MB);
    let mut seen = |held: Vec<v1::LoadedModel>| {
        let event = Event::Models { node: node(1), models: models.clone(), loaded: held, reserved: 200 * MB };
        rig.step(event);
        rig.step(Event::Evicted { node: node(1), evictions: vec![gone.clone()] });
        let explained = rig.core.explain_model("words").unwrap();
        explained.nodes.into_iter().next().unwrap()
    };
    let node = seen(vec![loaded("pages", 9, false), loaded("vectors", 4, false)]);
    let leaving: Vec<&str> = node.leaving.iter().map(|model| model.model.as_str()).collect();
    assert!(node.has_room && !node.loaded && node.ready, "{node:?}");
    assert_eq!(leaving, ["vectors"], "the longest unused, and no more than needed");
    let fit = node.fit.as_ref().unwrap();
    assert!(fit.fits && fit.needed_bytes > 80 * MB && fit.available_bytes == 250 * MB, "{fit:?}");
    assert_eq!(node.evicted.as_ref().map(|gone| gone.made_room_for.as_str()), Some("pages"));
    never_negative(node.terms.as_ref().unwrap());
    let node = seen(vec![loaded("pages", 9, true), loaded("vectors", 4, true)]);
    assert!(!node.has_room && node.leaving.is_empty(), "what is in use stays: {node:?}");
    let node = seen(vec![loaded("words", 9, false)]);
    assert!(node.loaded && node.has_room && node.leaving.is_empty(), "{node:?}");
    assert_eq!(rig.core.explain_model("nothing").unwrap_err().code, ErrorCode::ModelNotFound);
}

#[test]
fn a_model_that_fits_nowhere_says_so_with_the_bytes() {
    let mut rig = Rig::new();
    rig.attach(1, &[]);
    rig.budget(1, 50_000_000);
    let explained = rig.core.explain_model("words").unwrap();
    let node = &explained.nodes[0];
    let needed = node.fit.as_ref().unwrap().needed_bytes;
    assert_eq!(node.why_not, format!("it needs {needed} bytes and the node has 50000000"));
    assert!(explained.summary.contains("no node takes work of it now; n-1"), "{}", explained.summary);
    assert!(!node.has_room);
}
