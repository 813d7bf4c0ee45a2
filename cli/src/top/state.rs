//! What `ingle top` knows: the latest look at the cluster, and where the person is in it. Pure.

use std::collections::{BTreeMap, VecDeque};

use ingle_proto::v1;

use crate::commands::wait;

/// Looks that the little curve of the rate goes back.
const RATES_MAX: usize = 24;
/// Rows that a page of keys moves.
const PAGE: usize = 10;

/// One look at the cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Look {
    pub(super) at_ms: i64,
    pub(super) status: v1::GetStatusResponse,
    pub(super) nodes: Vec<v1::NodeStatus>,
    pub(super) jobs: Vec<v1::Job>,
}

/// The two tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Nodes,
    Jobs,
}

/// What the nodes are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NodeOrder {
    Name,
    Busy,
    Heat,
    Memory,
}

/// What the jobs are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobOrder {
    Newest,
    Rate,
    Left,
}

/// A key as far as it means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Quit,
    Pause,
    Sort,
    Help,
    Other,
    Up,
    Down,
    PageUp,
    PageDown,
    Home,
    End,
    /// Nothing to do but draw: the terminal has another size.
    Redraw,
}

/// See the module.
#[derive(Debug, Clone)]
pub(super) struct Top {
    pub(super) endpoint: String,
    pub(super) look: Look,
    /// Since when nobody answers, and what was said last.
    pub(super) away: Option<(i64, String)>,
    /// Documents per second at each look, the newest last.
    pub(super) rates: VecDeque<f64>,
    /// Share of the time between two looks in which a node computed.
    busy: BTreeMap<String, f64>,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) focus: Table,
    pub(super) node_order: NodeOrder,
    pub(super) job_order: JobOrder,
    selected: [usize; 2],
}

impl Top {
    pub(super) fn new(endpoint: &str, look: Look) -> Self {
        let mut top = Self {
            endpoint: endpoint.to_owned(),
            look: Look::default(),
            away: None,
            rates: VecDeque::new(),
            busy: BTreeMap::new(),
            paused: false,
            help: false,
            focus: Table::Jobs,
            node_order: NodeOrder::Name,
            job_order: JobOrder::Newest,
            selected: [0; 2],
        };
        top.take(look);
        top
    }

    /// Another look.
    pub(super) fn take(&mut self, look: Look) {
        let elapsed = look.at_ms.saturating_sub(self.look.at_ms);
        let before: BTreeMap<&str, u64> =
            self.look.nodes.iter().map(|node| (node.node_id.as_str(), node.busy_ms)).collect();
        let share = |node: &v1::NodeStatus| {
            // One that has joined anew counts from nothing.
            let gone = node.busy_ms.checked_sub(*before.get(node.node_id.as_str())?)?;
            (elapsed > 0).then(|| (node.node_id.clone(), (gone as f64 / elapsed as f64).min(1.0)))
        };
        self.busy = look.nodes.iter().filter_map(share).collect();
        self.rates.push_back(rate(&look));
        if self.rates.len() > RATES_MAX {
            self.rates.pop_front();
        }
        self.look = look;
        self.away = None;
        self.keep_within();
    }

    /// Nobody answered.
    pub(super) fn lost(&mut self, now_ms: i64, why: String) {
        let since = self.away.take().map_or(now_ms, |(since, _)| since);
        self.away = Some((since, why));
    }

    /// Does what a key means. True if it means to leave.
    pub(super) fn key(&mut self, key: Key) -> bool {
        let rows = self.rows(self.focus);
        let selected = &mut self.selected[self.focus as usize];
        match key {
            Key::Quit if self.help => self.help = false,
            Key::Quit => return true,
            Key::Pause => self.paused = !self.paused,
            Key::Help => self.help = !self.help,
            Key::Other => self.focus = if self.focus == Table::Nodes { Table::Jobs } else { Table::Nodes },
            Key::Sort => self.sort_on(),
            Key::Up => *selected = selected.saturating_sub(1),
            Key::Down => *selected += 1,
            Key::PageUp => *selected = selected.saturating_sub(PAGE),
            Key::PageDown => *selected += PAGE,
            Key::Home => *selected = 0,
            Key::End => *selected = rows,
            Key::Redraw => {}
        }
        self.keep_within();
        false
    }

    fn sort_on(&mut self) {
        match self.focus {
            Table::Nodes => {
                self.node_order = match self.node_order {
                    NodeOrder::Name => NodeOrder::Busy,
                    NodeOrder::Busy => NodeOrder::Heat,
                    NodeOrder::Heat => NodeOrder::Memory,
                    NodeOrder::Memory => NodeOrder::Name,
                }
            }
            Table::Jobs => {
                self.job_order = match self.job_order {
                    JobOrder::Newest => JobOrder::Rate,
                    JobOrder::Rate => JobOrder::Left,
                    JobOrder::Left => JobOrder::Newest,
                }
            }
        }
    }

    fn rows(&self, table: Table) -> usize {
        match table {
            Table::Nodes => self.look.nodes.len(),
            Table::Jobs => self.look.jobs.len(),
        }
    }

    /// Rows come and go: whoever looks stays on one that is there.
    fn keep_within(&mut self) {
        for table in [Table::Nodes, Table::Jobs] {
            let last = self.rows(table).saturating_sub(1);
            let selected = &mut self.selected[table as usize];
            *selected = (*selected).min(last);
        }
    }

    /// The row of a table that the person is at.
    pub(super) fn selected(&self, table: Table) -> usize {
        self.selected[table as usize]
    }

    /// How much of the time between the last two looks a node computed; `None` before there are two.
    pub(super) fn busy(&self, node: &v1::NodeStatus) -> Option<f64> {
        self.busy.get(&node.node_id).copied()
    }

    /// Nodes in the order asked for; equal ones by name.
    pub(super) fn nodes(&self) -> Vec<&v1::NodeStatus> {
        let mut nodes: Vec<&v1::NodeStatus> = self.look.nodes.iter().collect();
        nodes.sort_by(|a, b| (name(a), &a.node_id).cmp(&(name(b), &b.node_id)));
        let most = |value: &dyn Fn(&v1::NodeStatus) -> f64, nodes: &mut Vec<&v1::NodeStatus>| {
            nodes.sort_by(|a, b| value(b).total_cmp(&value(a)));
        };
        match self.node_order {
            NodeOrder::Name => {}
            NodeOrder::Busy => most(&|node| self.busy(node).unwrap_or(0.0), &mut nodes),
            NodeOrder::Heat => most(&|node| node.temperature_celsius, &mut nodes),
            NodeOrder::Memory => most(&|node| node.memory_reserved as f64, &mut nodes),
        }
        nodes
    }

    /// Jobs in the order asked for, those that are open first.
    pub(super) fn jobs(&self) -> Vec<&v1::Job> {
        let mut jobs: Vec<&v1::Job> = self.look.jobs.iter().collect();
        jobs.sort_by(|a, b| b.created_ms.cmp(&a.created_ms).then_with(|| b.job_id.cmp(&a.job_id)));
        match self.job_order {
            JobOrder::Newest => {}
            JobOrder::Rate => jobs.sort_by(|a, b| b.items_per_second.total_cmp(&a.items_per_second)),
            // What has no end in sight comes last.
            JobOrder::Left => jobs.sort_by_key(|job| if job.eta_ms > 0 { job.eta_ms } else { i64::MAX }),
        }
        jobs.sort_by_key(|job| wait::ended(job.state()));
        jobs
    }
}

/// What a node is called: its name, or its identifier where it has none.
pub(super) fn name(node: &v1::NodeStatus) -> &str {
    if node.name.is_empty() { &node.node_id } else { &node.name }
}

/// Documents per second of all open jobs.
fn rate(look: &Look) -> f64 {
    let open = look.jobs.iter().filter(|job| !wait::ended(job.state()));
    open.map(|job| job.items_per_second).filter(|rate| rate.is_finite()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, busy_ms: u64) -> v1::NodeStatus {
        v1::NodeStatus { node_id: id.into(), busy_ms, ..Default::default() }
    }

    fn job(id: &str, created_ms: i64, state: v1::JobState) -> v1::Job {
        v1::Job { job_id: id.into(), created_ms, state: state.into(), ..Default::default() }
    }

    fn at(at_ms: i64, nodes: Vec<v1::NodeStatus>, jobs: Vec<v1::Job>) -> Look {
        Look { at_ms, nodes, jobs, ..Look::default() }
    }

    #[test]
    fn busy_is_what_was_computed_between_two_looks() {
        let mut top = Top::new("x", at(1_000, vec![node("a", 500), node("b", 900)], Vec::new()));
        assert_eq!(top.busy(&node("a", 0)), None, "one look tells nothing of time");
        top.take(at(3_000, vec![node("a", 1_000), node("b", 100), node("c", 5)], Vec::new()));
        assert_eq!(top.busy(&node("a", 0)), Some(0.25));
        assert_eq!(top.busy(&node("b", 0)), None, "it has joined anew");
        assert_eq!(top.busy(&node("c", 0)), None);
        top.take(at(3_000, vec![node("a", 9_000)], Vec::new()));
        assert_eq!(top.busy(&node("a", 0)), None, "no time has gone");
        top.take(at(3_100, vec![node("a", 99_000)], Vec::new()));
        assert_eq!(top.busy(&node("a", 0)), Some(1.0), "never more than all of it");
    }

    #[test]
    fn keys_move_within_what_is_there() {
        let jobs = |n: i64| (0..n).map(|i| job(&format!("j-{i}"), i, v1::JobState::Running)).collect::<Vec<_>>();
        let mut top = Top::new("x", at(1, vec![node("a", 0)], jobs(15)));
        for (key, row) in [
            (Key::Up, 0),
            (Key::Down, 1),
            (Key::PageDown, 11),
            (Key::PageDown, 14),
            (Key::Home, 0),
            (Key::End, 14),
            (Key::PageUp, 4),
        ] {
            assert!(!top.key(key));
            assert_eq!(top.selected(Table::Jobs), row, "{key:?}");
        }
        top.take(at(2, Vec::new(), jobs(2)));
        assert_eq!(top.selected(Table::Jobs), 1, "the row has gone");
        top.take(at(3, Vec::new(), Vec::new()));
        top.key(Key::End);
        assert_eq!(top.selected(Table::Jobs), 0);
        top.key(Key::Help);
        assert!(!top.key(Key::Quit) && !top.help, "leaves the help first");
        assert!(top.key(Key::Quit));
    }

    #[test]
    fn open_jobs_come_before_ended_ones_in_every_order() {
        let running = |id: &str, created, rate, eta_ms| v1::Job {
            items_per_second: rate,
            eta_ms,
            ..job(id, created, v1::JobState::Running)
        };
        let ended = v1::Job { items_per_second: 99.0, ..job("j-9", 9, v1::JobState::Succeeded) };
        let jobs = vec![running("j-1", 1, 5.0, 900), running("j-2", 2, 1.0, 100), running("j-3", 3, 2.0, 0), ended];
        let mut top = Top::new("x", at(1, Vec::new(), jobs));
        let ids = |top: &Top| top.jobs().iter().map(|job| job.job_id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&top), ["j-3", "j-2", "j-1", "j-9"]);
        top.key(Key::Sort);
        assert_eq!((top.job_order, ids(&top)), (JobOrder::Rate, ["j-1", "j-3", "j-2", "j-9"].map(Into::into).into()));
        top.key(Key::Sort);
        assert_eq!((top.job_order, ids(&top)), (JobOrder::Left, ["j-2", "j-1", "j-3", "j-9"].map(Into::into).into()));
        assert_eq!(top.rates, [8.0]);
    }

    #[test]
    fn absence_counts_from_its_beginning() {
        let mut top = Top::new("x", at(1, Vec::new(), Vec::new()));
        top.lost(1_000, "refused".into());
        top.lost(5_000, "no route".into());
        assert_eq!(top.away, Some((1_000, "no route".into())));
        top.take(at(6_000, Vec::new(), Vec::new()));
        assert_eq!(top.away, None);
    }
}
