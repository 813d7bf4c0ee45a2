//! `ingle models explain`: why a model is where it is, in words and figures.

use std::time::Duration;

use ingle_proto::v1;

use crate::client::Client;
use crate::exit::Failure;
use crate::out::Colour;
use crate::{human, json};

pub(super) async fn model(client: &Client, model: String) -> Result<(), Failure> {
    let mut models = client.models().await?;
    let answer = client.call(models.explain_model(client.request(v1::ExplainModelRequest { model }))).await?;
    let out = client.out;
    if out.json {
        return out.json(&json::model_explanation(&answer));
    }
    out.line(&answer.summary)?;
    if answer.calls_running + answer.calls_waiting > 0 {
        out.line(format!(
            "calls: {} run, {} wait; one takes {}, and one that came now would wait {}",
            answer.calls_running,
            answer.calls_waiting,
            time(answer.service_ms),
            time(answer.wait_ms)
        ))?;
    }
    if answer.nodes.is_empty() {
        return Ok(());
    }
    out.line("")?;
    let rows = answer.nodes.iter().map(|node| {
        let fit = node.fit.clone().unwrap_or_default();
        let terms = node.terms.clone().unwrap_or_default();
        let ready = if node.ready { out.paint(Colour::Green, "yes") } else { out.paint(Colour::Red, "no") };
        vec![
            node.node_id.clone(),
            if node.loaded { "yes" } else { "no" }.to_owned(),
            ready,
            format!("{} of {}", human::bytes(fit.needed_bytes), human::bytes(fit.available_bytes)),
            human::bytes(node.memory_reserved),
            time(terms.backlog_ms),
            time(terms.load_ms),
            if node.ready { time(terms.finish_ms) } else { "–".to_owned() },
        ]
    });
    out.table(&["NODE", "LOADED", "TAKES WORK", "NEEDS", "TAKEN", "BACKLOG", "LOAD", "FINISH"], rows.collect())?;
    let said: Vec<String> = answer.nodes.iter().flat_map(remarks).collect();
    if !said.is_empty() {
        out.line("")?;
    }
    said.iter().try_for_each(|line| out.line(line))
}

/// What there is to say of a node beyond its figures.
fn remarks(node: &v1::ModelOnNode) -> Vec<String> {
    let id = &node.node_id;
    let mut said = Vec::new();
    if !node.ready {
        said.push(format!("{id} takes no work of it: {}", human::cut(&node.why_not, 300)));
    }
    let fits = node.fit.as_ref().is_some_and(|fit| fit.fits);
    if !node.loaded && fits {
        said.push(match (node.has_room, node.leaving.as_slice()) {
            (true, []) => format!("{id} has room for it"),
            (true, leaving) => {
                let named = leaving.iter().map(|model| format!("{} ({})", model.model, human::bytes(model.bytes)));
                format!("{id} would make room: {}", named.collect::<Vec<_>>().join(", "))
            }
            (false, _) => format!("{id} has no room for it as long as what is loaded there is in use"),
        });
    }
    if let Some(evicted) = &node.evicted {
        let reason = match evicted.made_room_for.as_str() {
            "" => evicted.reason.clone(),
            other => format!("to make room for {other}: {}", evicted.reason),
        };
        let ago = human::age(evicted.at_ms, human::now_ms());
        said.push(format!("it left {id} {ago}, {}, {}", human::bytes(evicted.bytes), human::cut(&reason, 300)));
    }
    for breaker in &node.breakers {
        let what = if breaker.model.is_empty() { "itself" } else { "for it" };
        said.push(format!("the breaker of {id} {what} is {}", state(breaker)));
    }
    said
}

/// Whether a breaker is open, for how long, and what opened it.
fn state(breaker: &v1::Breaker) -> String {
    let state = match breaker.state() {
        v1::BreakerState::Open => {
            let left = breaker.open_until_ms.saturating_sub(human::now_ms()).max(0).unsigned_abs();
            format!("open for {}", human::duration(Duration::from_millis(left)))
        }
        _ => "half open: one attempt shows whether it works again".to_owned(),
    };
    format!("{state}; {}", human::cut(&breaker.reason, 300))
}

/// All breakers of a node in one line; empty if none is open.
pub(super) fn breakers(node: &v1::NodeStatus) -> String {
    let told = node.breakers.iter().map(|breaker| {
        let what = if breaker.model.is_empty() { "all work" } else { breaker.model.as_str() };
        format!("for {what} {}", state(breaker))
    });
    told.collect::<Vec<_>>().join("; ")
}

/// Milliseconds as a person reads them.
fn time(ms: f64) -> String {
    match Duration::try_from_secs_f64(ms.max(0.0) / 1e3) {
        Ok(time) => human::duration(time),
        Err(_) => "–".to_owned(),
    }
}
