//! Coordinators, their leader, versions, nodes, clocks, and jobs that are stuck: asked, each question with a deadline.

use std::future::Future;

use ingle_daemon::grpc::Channel;
use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, JobState, NodeState};
use tokio::task::JoinSet;
use tonic::{Code, Response, Status};
use v1::cluster_client::ClusterClient;

use super::clock::{Asked, judge};
use super::{Check, WITHIN};
use crate::client::Client;
use crate::human::{self, now_ms};

/// Most nodes that are asked one by one.
const NODES_MAX: usize = 200;
/// Jobs that are looked at, the newest.
const JOBS_MAX: u32 = 500;
/// Documents that were set aside so long ago are no news.
const NEWS_MS: i64 = 7 * 86_400_000;

/// What others of our checks begin with.
pub(super) struct Seen {
    pub(super) status: v1::GetStatusResponse,
    /// Where jobs put their results, the newest first.
    pub(super) outputs: Vec<v1::ObjectRef>,
}

/// What was answered, and how far the other clock is from ours.
pub(super) struct Met<T> {
    pub(super) answer: Result<T, Status>,
    pub(super) skew_ms: Option<i64>,
}

/// Asks and looks at the clock.
pub(super) async fn ask<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Met<T> {
    let sent_ms = now_ms();
    let answer = tokio::time::timeout(WITHIN, call).await;
    let asked = Asked { sent_ms, heard_ms: now_ms() };
    match answer {
        Ok(Ok(response)) => {
            let skew_ms = asked.skew_ms(response.metadata());
            Met { answer: Ok(response.into_inner()), skew_ms }
        }
        Ok(Err(status)) => Met { skew_ms: asked.skew_ms(status.metadata()), answer: Err(status) },
        Err(_) => {
            let words = format!("no answer within {}", human::duration(WITHIN));
            Met { answer: Err(Status::deadline_exceeded(words)), skew_ms: None }
        }
    }
}

pub(super) async fn look(client: &Client, checks: &mut Vec<Check>) -> Option<Seen> {
    let mut versions = vec![("this program".to_owned(), ingle_daemon::version().to_owned())];
    let mut found = None;
    for endpoint in client.endpoints() {
        let client = client.at(endpoint.clone());
        if let Some(status) = coordinator(&client, checks).await {
            versions.push((format!("the coordinator at {endpoint}"), status.version.clone()));
            found = found.or(Some((client, status)));
        }
    }
    let seen = match found {
        None => None,
        Some((client, status)) => {
            leader(&status, checks);
            nodes(&client, &mut versions, checks).await;
            let outputs = jobs(&client, checks).await;
            Some(Seen { status, outputs })
        }
    };
    checks.push(same_release(&versions));
    seen
}

async fn coordinator(client: &Client, checks: &mut Vec<Check>) -> Option<v1::GetStatusResponse> {
    let what = format!("the coordinator at {}", client.endpoint);
    let mut cluster = match client.cluster().await {
        Ok(cluster) => cluster,
        Err(failure) => {
            checks.push(Check::failed("coordinator", &what, &failure));
            return None;
        }
    };
    let met = ask(cluster.get_status(v1::GetStatusRequest {})).await;
    if met.answer.is_ok() {
        super::here::of_server(client, &what, checks).await;
    }
    checks.extend(met.skew_ms.map(|skew| judge(&what, skew)));
    match met.answer {
        Ok(status) => {
            checks.push(Check::ok("coordinator", format!("{what} answers, version {}", status.version)));
            Some(status)
        }
        Err(status) => {
            let failure = client.failure(&status);
            checks.push(if failure.code == Some(ErrorCode::NotLeader.as_str()) {
                let todo = "see whether a majority of etcd's members is there, and the coordinators' logs";
                Check::fail("leader", format!("{what} answers, but nobody leads: {}", failure.message), todo)
            } else {
                Check::failed("coordinator", &what, &failure)
            });
            None
        }
    }
}

fn leader(status: &v1::GetStatusResponse, checks: &mut Vec<Check>) {
    let epoch = status.epoch.unwrap_or_default();
    checks.push(if epoch.generation == 0 && epoch.revision == 0 {
        Check::fail("leader", "nobody leads: no epoch is told", "see the coordinators' logs")
    } else {
        Check::ok("leader", format!("a coordinator leads, in epoch {}.{}", epoch.generation, epoch.revision))
    });
}

async fn nodes(client: &Client, versions: &mut Vec<(String, String)>, checks: &mut Vec<Check>) {
    let answer = match client.cluster().await {
        Ok(mut cluster) => ask(cluster.list_nodes(v1::ListNodesRequest {})).await.answer,
        Err(failure) => return checks.push(Check::failed("nodes", "the nodes", &failure)),
    };
    let nodes = match answer {
        Ok(answer) => answer.nodes,
        Err(status) => return checks.push(Check::failed("nodes", "the nodes", &client.failure(&status))),
    };
    if nodes.is_empty() {
        let todo = "start ingle-node on a machine, with this coordinator in its settings";
        return checks.push(Check::fail("nodes", "there is no node: nothing can be computed", todo));
    }
    let mut asked = JoinSet::new();
    for (at, node) in nodes.iter().enumerate().take(NODES_MAX) {
        checks.extend(judged(node));
        if !node.version.is_empty() {
            versions.push((format!("node {}", called(node)), node.version.clone()));
        }
        if !node.address.is_empty() && node.state() != NodeState::Lost {
            let client = client.at(node.address.clone());
            asked.spawn(async move { (at, reached(&client).await) });
        }
    }
    let mut reached: Vec<(usize, Result<Option<i64>, String>)> = Vec::new();
    while let Some(joined) = asked.join_next().await {
        reached.extend(joined.ok());
    }
    reached.sort_by_key(|(at, _)| *at);
    for (at, answer) in reached {
        let Some(node) = nodes.get(at) else { continue };
        let who = format!("node {}", called(node));
        match answer {
            Ok(skew) => checks.extend(skew.map(|skew| judge(&who, skew))),
            // The coordinator has to reach it, not we: from here it may be another network.
            Err(why) => {
                let todo = "if it should be reachable from this machine, look at firewall, address and certificates";
                let said = format!("{who} at {} can't be reached from here: {why}", node.address);
                checks.push(Check::warn("nodes", said, todo));
            }
        }
    }
}

/// Speaks with a node itself; how far its clock is. It doesn't serve this call, and says so: that is an answer.
async fn reached(client: &Client) -> Result<Option<i64>, String> {
    let mut cluster: ClusterClient<Channel> = client.cluster().await.map_err(|failure| failure.message)?;
    let met = ask(cluster.get_status(v1::GetStatusRequest {})).await;
    match met.answer {
        Ok(_) => Ok(met.skew_ms),
        Err(status) if status.code() == Code::Unimplemented => Ok(met.skew_ms),
        Err(status) => Err(client.failure(&status).message),
    }
}

fn called(node: &v1::NodeStatus) -> String {
    if node.name.is_empty() || node.name == node.node_id {
        node.node_id.clone()
    } else {
        format!("{} ({})", node.node_id, node.name)
    }
}

fn judged(node: &v1::NodeStatus) -> Vec<Check> {
    let who = format!("node {}", called(node));
    let why = if node.reason.is_empty() { String::new() } else { format!(": {}", node.reason) };
    let id = &node.node_id;
    let mut checks = vec![match node.state() {
        NodeState::Ready => Check::ok("nodes", format!("{who} is ready")),
        NodeState::Suspect => Check::warn("nodes", format!("{who} is silent{why}"), "look at its load and its network"),
        NodeState::Lost => {
            let todo = "see whether the machine runs, and `journalctl -u ingle-node` there";
            Check::fail("nodes", format!("{who} is lost{why}"), todo)
        }
        NodeState::Draining => Check::warn("nodes", format!("{who} is being drained{why}"), "wait until it has ended"),
        NodeState::Drained => {
            let todo = format!("`ingle nodes uncordon {id}` lets it work again");
            Check::warn("nodes", format!("{who} is drained and takes no work{why}"), todo)
        }
        NodeState::Unspecified => {
            Check::warn("nodes", format!("{who} is in a state that is unknown here"), "upgrade ingle")
        }
    }];
    for breaker in &node.breakers {
        let what = if breaker.model.is_empty() { "anything" } else { breaker.model.as_str() };
        let said =
            format!("{who} gets no work of {what}, which failed there {} times: {}", breaker.opened, breaker.reason);
        checks.push(Check::warn("nodes", said, format!("see `ingle nodes show {id}`, and its log")));
    }
    if node.throttled {
        let said = format!("{who} is slowed down by heat, at {:.0} °C", node.temperature_celsius);
        checks.push(Check::warn("nodes", said, "give it air: dust, fans, where it stands"));
    }
    if node.memory_pressure > 0.1 {
        let said = format!("{who} waits for memory {:.0} % of the time", node.memory_pressure * 100.0);
        checks.push(Check::warn(
            "nodes",
            said,
            "raise its memory_reserve_bytes, or take other programs off the machine",
        ));
    }
    checks
}

/// What is stuck; where jobs put their results.
async fn jobs(client: &Client, checks: &mut Vec<Check>) -> Vec<v1::ObjectRef> {
    let answer = match client.jobs().await {
        Ok(mut jobs) => {
            let request = v1::ListJobsRequest { page_size: JOBS_MAX, ..Default::default() };
            ask(jobs.list_jobs(request)).await.answer.map_err(|status| client.failure(&status))
        }
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(listed) => {
            let found = stuck(&listed.jobs, now_ms());
            let words = format!("of the newest {} jobs none is stuck", listed.jobs.len());
            checks.extend(if found.is_empty() { vec![Check::ok("jobs", words)] } else { found });
            let mut outputs: Vec<v1::ObjectRef> = Vec::new();
            for output in listed.jobs.into_iter().filter_map(|job| job.spec?.output) {
                if !outputs.contains(&output) {
                    outputs.push(output);
                }
            }
            outputs
        }
        Err(failure) => {
            checks.push(Check::failed("jobs", "the jobs", &failure));
            Vec::new()
        }
    }
}

fn stuck(jobs: &[v1::Job], now: i64) -> Vec<Check> {
    let mut found = Vec::new();
    for job in jobs {
        let id = &job.job_id;
        let counts = job.counts.unwrap_or_default();
        let watches = job.spec.as_ref().is_some_and(|spec| spec.watch.is_some());
        let ended = crate::commands::wait::ended(job.state());
        if counts.quarantined > 0 && (!ended || now.saturating_sub(job.ended_ms) < NEWS_MS) {
            let said = format!("{id} has set {} documents aside, which hurt their nodes", counts.quarantined);
            let todo = format!("`ingle jobs items {id} --outcome quarantined` names them");
            found.push(Check::warn("jobs", said, todo));
        }
        match job.state() {
            JobState::Paused => {
                let said = format!("{id} is paused");
                found.push(Check::warn("jobs", said, format!("`ingle jobs resume {id}` goes on with it")));
            }
            state if crate::commands::wait::waits(state) && !job.reason.is_empty() => {
                let what = if watches { "watches a folder and is held up" } else { "waits" };
                let said = format!("{id} {what}: {}", human::cut(&job.reason, 300));
                found.push(Check::warn("jobs", said, format!("`ingle jobs explain {id}` says more")));
            }
            _ => {}
        }
    }
    found
}

/// Releases that stand beside each other speak with each other; further apart nothing is promised.
fn same_release(versions: &[(String, String)]) -> Check {
    let release = |version: &str| {
        let mut numbers = version.split(['.', '-', '+']).map(str::parse::<u64>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    let told = |list: &[&(String, String)]| {
        list.iter().map(|(who, version)| format!("{who} is {version}")).collect::<Vec<_>>().join(", ")
    };
    let strange: Vec<&(String, String)> = versions.iter().filter(|(_, version)| release(version).is_none()).collect();
    if !strange.is_empty() {
        return Check::warn("versions", told(&strange), "that is no version: is it ours?");
    }
    let (Some(oldest), Some(newest)) = (
        versions.iter().min_by_key(|(_, version)| release(version)),
        versions.iter().max_by_key(|(_, version)| release(version)),
    ) else {
        return Check::ok("versions", "nothing to compare");
    };
    let (old, new) = (release(&oldest.1).unwrap_or_default(), release(&newest.1).unwrap_or_default());
    let both = told(&[oldest, newest]);
    match (new.0 - old.0, new.1.abs_diff(old.1)) {
        (0, 0) => Check::ok("versions", format!("all {} are of release {}.{}", versions.len(), new.0, new.1)),
        (0, 1) => Check::warn("versions", format!("{both}: they work together"), "end the upgrade soon"),
        _ => Check::fail("versions", format!("{both}: more than one release apart"), "upgrade one release at a time"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn releases_beside_each_other_are_fine() {
        let judge = |versions: &[&str]| {
            let versions: Vec<(String, String)> =
                versions.iter().enumerate().map(|(i, v)| (format!("d{i}"), (*v).to_owned())).collect();
            same_release(&versions).verdict
        };
        assert_eq!(judge(&["0.2.0", "0.2.7", "0.2.1-rc1"]), Verdict::Ok);
        assert_eq!(judge(&["0.2.0", "0.3.0"]), Verdict::Warn);
        assert_eq!(judge(&["0.4.0", "0.3.1", "0.2.0"]), Verdict::Fail);
        assert_eq!(judge(&["1.0.0", "0.9.0"]), Verdict::Fail);
        assert_eq!(judge(&["0.2.0", "next"]), Verdict::Warn);
    }

    #[test]
    fn nodes_are_judged_by_what_they_tell() {
        let node =
            |state: NodeState| v1::NodeStatus { node_id: "n-1".into(), state: state.into(), ..Default::default() };
        for (state, verdict) in [
            (NodeState::Ready, Verdict::Ok),
            (NodeState::Suspect, Verdict::Warn),
            (NodeState::Drained, Verdict::Warn),
            (NodeState::Lost, Verdict::Fail),
        ] {
            let checks = judged(&node(state));
            assert_eq!((checks.len(), checks[0].verdict), (1, verdict), "{state:?}");
        }
        let breaker = v1::Breaker { model: "m".into(), opened: 3, reason: "no memory".into(), ..Default::default() };
        let hot =
            v1::NodeStatus { breakers: vec![breaker], throttled: true, memory_pressure: 0.5, ..node(NodeState::Ready) };
        assert_eq!(judged(&hot).iter().filter(|check| check.verdict == Verdict::Warn).count(), 3);
    }

    #[test]
    fn what_is_stuck_is_named() {
        let job = |id: &str, state: JobState, reason: &str, quarantined, ended_ms| v1::Job {
            job_id: id.into(),
            state: state.into(),
            reason: reason.into(),
            counts: Some(v1::ItemCounts { quarantined, ..Default::default() }),
            ended_ms,
            ..Default::default()
        };
        let now = 30 * NEWS_MS;
        let jobs = [
            job("j-1", JobState::Failed, "", 2, now - 1_000),
            job("j-2", JobState::Failed, "", 2, now - NEWS_MS),
            job("j-3", JobState::Standing, "no route to host", 0, 0),
            job("j-4", JobState::Paused, "", 0, 0),
            job("j-5", JobState::Running, "", 0, 0),
            job("j-6", JobState::Failed, "nothing fits", 0, now),
        ];
        let said: Vec<String> = stuck(&jobs, now).into_iter().map(|check| check.said).collect();
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("j-1 ") && said[1].contains("no route to host") && said[2] == "j-4 is paused");
    }
}
