//! Nodes come, fall silent, come back and leave; a new leader takes up what the last one left.

use ingle_proto::{ErrorCode, NodeId, Problem, v1};

use super::event::{Attached, Effect};
use super::nodes::Health;
use super::record::BatchState;
use super::{Attempt, Core, Job, Owner, Step};
use crate::limits;

use v1::JobState;

/// Whose fault it is that an attempt is gone.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Loss {
    /// Its node died with it, and nothing else was there.
    Died,
    /// Its node died, and nobody knows whether it had it.
    Unseen,
    /// Its node died with it and with others.
    Among,
    /// It ran far too long: a failure of what is in it.
    Late,
    /// Nobody's.
    Free,
}

impl Core {
    pub(super) fn node_attached(&mut self, step: &mut Step, attached: Attached) {
        if self.nodes.get(&attached.node).is_none() && self.nodes.len() >= limits::NODES_MAX {
            return;
        }
        let id = attached.node.clone();
        let adopted = attached.adopted.clone();
        let running: std::collections::BTreeSet<u64> = attached.running.iter().copied().collect();
        // What was learned on other hardware says nothing of this.
        self.speeds.runs_on(&id, &attached.capacity);
        self.came_back(step, &id, &attached.incarnation);
        let restarted = self.nodes.attach(attached, self.now).is_some();
        // What it runs is adopted; what we believed it to run and it doesn't know is gone with its process.
        let ours: Vec<u64> =
            self.attempts.iter().filter(|(_, attempt)| attempt.node == id).map(|(number, _)| *number).collect();
        if restarted {
            let gone: Vec<u64> = ours.iter().copied().filter(|number| !running.contains(number)).collect();
            self.node_failed(&id, &gone, "its process ended while it worked");
        }
        for number in ours {
            if running.contains(&number) {
                self.lost.remove(&number);
                if let Some(attempt) = self.attempts.get_mut(&number) {
                    attempt.unconfirmed = false;
                    attempt.seen = true;
                    // Whoever cancelled may have spoken into a broken stream, or to the leader before.
                    if let Owner::Batch { job, .. } = attempt.owner
                        && self.jobs.get(&job).is_some_and(|job| job.record.state() == JobState::Cancelling)
                    {
                        let reason = "its job is cancelled".to_owned();
                        step.effects.push(Effect::CancelAttempt { node: id.clone(), attempt: number, reason });
                    }
                }
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.attempts.insert(number);
                }
            } else if restarted {
                let problem = Problem::new(ErrorCode::NoNode, format!("node {id} restarted while it ran this"));
                self.attempt_lost(number, &problem);
            } else {
                // The same process, or one that another leader dealt with: the dispatch never reached it.
                let problem = Problem::new(ErrorCode::NoNode, format!("node {id} never received this"));
                self.give_back(number, &problem);
            }
        }
        for call in adopted {
            self.adopt_call(&id, call);
        }
        for number in running {
            if !self.attempts.contains_key(&number) {
                step.effects.push(Effect::CancelAttempt {
                    node: id.clone(),
                    attempt: number,
                    reason: "nobody waits for it any more".into(),
                });
            }
        }
        // Whether it is drained is ours to know: it may have been told otherwise by a leader before, or missed it.
        let drain = self.nodes.get(&id).is_some_and(|node| node.draining);
        step.effects.push(Effect::SetDrain { node: id.clone(), drain });
        self.begin_going(step, &id);
    }

    /// The attempt is gone with its node.
    fn attempt_lost(&mut self, number: u64, problem: &Problem) {
        let loss = match self.attempts.get(&number) {
            Some(attempt) if !attempt.alone => Loss::Among,
            Some(attempt) if !attempt.seen => Loss::Unseen,
            _ => Loss::Died,
        };
        self.lost.insert(number, (problem.clone(), loss));
    }

    /// The attempt ended without anybody's fault: free of charge.
    pub(super) fn give_back(&mut self, number: u64, problem: &Problem) {
        self.lost.insert(number, (problem.clone(), Loss::Free));
    }

    /// Deals with attempts that are gone, as many as fit into a commit.
    pub(super) fn settle_lost(&mut self, step: &mut Step) {
        while step.has_room()
            && let Some((number, (problem, loss))) = self.lost.pop_first()
        {
            let Some(attempt) = self.drop_attempt(number) else { continue };
            let outcome = match loss {
                Loss::Died | Loss::Unseen | Loss::Among => "died",
                Loss::Late => "late",
                Loss::Free => "given_back",
            };
            self.note_end(&attempt, outcome);
            match (attempt.owner, loss) {
                (Owner::Batch { job, batch }, Loss::Free) => self.requeue(step, job, batch, &problem, true),
                (Owner::Batch { job, batch }, _) => self.charge(step, job, batch, &problem, loss),
                (Owner::Call(call), Loss::Late) => self.call_failed(step, call, v1::FailureKind::Input, &problem),
                (Owner::Call(call), _) => self.call_failed(step, call, v1::FailureKind::Node, &problem),
            }
        }
    }

    pub(super) fn node_left(&mut self, step: &mut Step, id: &NodeId) {
        if self.node_gone(step, id) {
            return;
        }
        let Some(node) = self.nodes.get_mut(id) else { return };
        node.left = true;
        // Nothing of it will answer. One that went in order was heard until then; one that fell silent died.
        if node.connected {
            return;
        }
        let died = node.health(self.now) != Health::Ready;
        let held: Vec<u64> = node.attempts.iter().copied().collect();
        let problem = Problem::new(ErrorCode::NoNode, format!("node {id} left"));
        if died {
            self.node_failed(id, &held, "it fell silent while it worked, and left");
        }
        for number in held {
            if died {
                self.attempt_lost(number, &problem);
            } else {
                self.give_back(number, &problem);
            }
        }
    }

    /// We stood still for so long: neither was anybody silent meanwhile nor did anything take longer than it may.
    pub(super) fn stood(&mut self, ms: u64) {
        let now = self.now;
        self.nodes.forgive(ms, now);
        for attempt in self.attempts.values_mut() {
            attempt.deadline = attempt.deadline.saturating_add(ms);
        }
        for call in self.calls.values_mut() {
            call.waits_since = call.waits_since.saturating_add(ms).min(now.mono_ms);
        }
    }

    /// Acts on silence, once per stage.
    pub(super) fn watch_nodes(&mut self, step: &mut Step) {
        self.watch_calls(step);
        if self.nodes.mass_failure(self.now) {
            return;
        }
        let now = self.now;
        let silent: Vec<(NodeId, Health, Health)> = self
            .nodes
            .iter()
            .map(|(id, node)| (id.clone(), node.health(now), node.handled))
            .filter(|(_, health, handled)| health > handled)
            .collect();
        for (id, health, handled) in silent {
            let attempts: Vec<u64> =
                self.nodes.get(&id).map(|n| n.attempts.iter().copied().collect()).unwrap_or_default();
            let problem = Problem::new(ErrorCode::NoNode, format!("node {id} has been silent and is believed dead"));
            if health >= Health::Quiet && handled < Health::Quiet {
                self.node_failed(&id, &attempts, "it fell silent while it worked");
            }
            for number in attempts {
                let is_call = self.attempts.get(&number).is_some_and(|attempt| matches!(attempt.owner, Owner::Call(_)));
                let due =
                    if is_call { health >= Health::Quiet && handled < Health::Quiet } else { health >= Health::Lost };
                if due {
                    self.attempt_lost(number, &problem);
                }
            }
            if let Some(node) = self.nodes.get_mut(&id) {
                node.handled = health;
            }
        }
        // After a change of leader the work of nodes that did not come back in time is leased again.
        if now.mono_ms.saturating_sub(self.started) >= limits::REATTACH_MS {
            let orphans: Vec<u64> = self
                .attempts
                .iter()
                .filter(|(_, attempt)| attempt.unconfirmed)
                .map(|(number, _)| *number)
                .take(32)
                .collect();
            for number in orphans {
                let problem =
                    Problem::new(ErrorCode::NoNode, "its node did not come back after the coordinator restarted");
                self.give_back(number, &problem);
            }
        }
    }

    /// Jobs that have nothing left to wait for end, also when the event that should have ended them died with a leader.
    pub(super) fn watch_idle(&mut self, step: &mut Step) {
        let idle: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(_, job)| {
                (job.record.listed || job.record.state() == JobState::Cancelling)
                    && job.record.state() != JobState::Standing
                    && job.running.is_empty()
                    && job.publishing.is_empty()
                    && (job.record.state() == JobState::Cancelling
                        || (job.queued.is_empty() && job.uncut.is_empty() && job.uncut_pages.is_empty()))
            })
            .map(|(number, _)| *number)
            .take(16)
            .collect();
        for number in idle {
            if !step.has_room() {
                break;
            }
            self.progress_job(step, number);
        }
    }

    /// Rebuilds what is not stored from what is: after a restart.
    pub(super) fn restore(&mut self) {
        let now = self.now;
        // Parts whose job has ended stay behind only if the archiving commit was cut off: they name no open job.
        self.jobs.retain(|number, job| job.record.number == *number && job.record.spec.is_some());
        for (number, job) in &mut self.jobs {
            if job.restore() {
                for id in job.running.clone() {
                    let batch = &job.batches[&id];
                    let Ok(node) = NodeId::parse(&batch.node) else { continue };
                    self.attempts.insert(
                        batch.attempt,
                        Attempt {
                            owner: Owner::Batch { job: *number, batch: id },
                            node,
                            started: now.mono_ms,
                            expected_ms: limits::BATCH_TARGET_MS,
                            // How long it ran already nobody knows any more: all its time anew.
                            deadline: now.mono_ms + batch.allowed_ms.max(limits::ATTEMPT_FLOOR_MS),
                            bytes_done: 0,
                            items_done: 0,
                            unconfirmed: true,
                            decision: None,
                            // Suspect ones are sent to empty nodes only; what was beside the others is not recorded.
                            alone: batch.suspect,
                            seen: false,
                        },
                    );
                }
            }
            *self.principal_busy.entry(job.record.principal.clone()).or_default() += job.record.busy_ms;
        }
        // What was being published when the leader died is published again: the gateway answers for what is done.
        for job in self.jobs.values_mut() {
            for id in &job.publishing {
                if let Some(batch) = job.batches.get_mut(id) {
                    batch.not_before_ms = batch.not_before_ms.max(1);
                }
            }
        }
    }
}

impl Job {
    /// Returns whether anything of it may be running on a node.
    fn restore(&mut self) -> bool {
        self.next_batch = self.batches.keys().next_back().map_or(1, |last| last + 1);
        let kind = self.record.spec().kind();
        for batch in self.batches.values() {
            if batch.takes_documents()
                && let Some(segment) = self.segments.get_mut(&batch.segment)
            {
                segment.cut = segment.cut.max(batch.end());
            }
        }
        if !self.record.listed {
            return false;
        }
        self.index_segments();
        self.restore_splits();
        for (id, batch) in &self.batches {
            let running = if batch.takes_documents() { u64::from(batch.count) } else { 0 };
            if !batch.join && matches!(batch.state(), BatchState::Queued | BatchState::Running) {
                *self.bucket_open.entry(batch.bucket).or_default() += 1;
            }
            if batch.join && !batch.joins_document() {
                self.joins_due.remove(&batch.bucket);
            }
            match batch.state() {
                BatchState::Queued => {
                    self.queued.insert(*id);
                }
                BatchState::Running => {
                    self.running.insert(*id);
                    self.counts.running += running;
                }
                BatchState::Committed => {
                    if batch.join || batch.outputs > 0 {
                        self.publishing.insert(*id);
                    }
                }
                BatchState::Quarantined => self.counts.quarantined += u64::from(batch.stands_for()),
                BatchState::Published => {}
            }
        }
        self.settled = self.settled_anew();
        self.counts.published = 0;
        let totals = super::check::settled_counts(kind, &self.batches);
        self.counts.unchanged += totals.unchanged;
        self.counts.skipped += totals.skipped;
        self.counts.failed = totals.failed;
        self.counts.committed = totals.committed;
        self.counts.published = totals.published;
        self.counts.conflict += totals.conflict;
        self.counts.deleted = totals.deleted;
        self.counts.bytes_done = totals.bytes_done;
        self.counts.incomplete = totals.incomplete;
        // Cancelled while batches ran: they are told again when their nodes come back.
        !self.running.is_empty() || self.record.state() == JobState::Cancelling
    }
}
