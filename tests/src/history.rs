//! What happened to a cluster under faults, and what must hold of it: whatever was accepted ends, each document's result is
//! visible exactly once, no answer differs from the undisturbed one or is told twice, and leaders' epochs only rise.
//!
//! Plain data that the test writes down as it sees it. The checks read only that, so that they are tested themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ingle_membership::Revision;

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    /// Jobs that a coordinator answered for.
    pub jobs: Vec<Accepted>,
    /// Answers that people read, also those that ended badly.
    pub answers: Vec<Read>,
    /// Leaders, in the order in which they were seen.
    pub reigns: Vec<Reign>,
    /// Which reader was told a token, and when.
    pub tokens: Vec<(usize, Instant)>,
    /// What was done to the cluster.
    pub faults: Vec<Fault>,
}

/// A job that was accepted.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// Whoever submitted it chose this.
    pub key: String,
    /// The coordinator answered with this.
    pub id: String,
    /// Documents that it is over.
    pub documents: BTreeSet<String>,
    /// How it ended, if it did.
    pub end: Option<End>,
}

/// How a job ended.
#[derive(Debug, Clone, Default)]
pub struct End {
    /// As the coordinator says.
    pub succeeded: bool,
    /// Documents as they are listed, each as often as it is, with whether its result is published.
    pub listed: Vec<(String, bool)>,
    /// Documents with a visible result, each as often as one is there.
    pub visible: Vec<String>,
}

/// An answer as one reader saw it.
#[derive(Debug, Clone)]
pub struct Read {
    /// Whoever read it.
    pub reader: usize,
    /// Which question it answers.
    pub question: usize,
    /// When it was asked.
    pub asked: Instant,
    /// When it was over.
    pub over: Instant,
    /// Tokens in the order in which they were told.
    pub tokens: Vec<u32>,
    /// Text likewise.
    pub text: String,
    /// How it ended.
    pub end: ReadEnd,
}

/// How an answer ended for its reader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadEnd {
    /// With its last frame.
    Whole,
    /// It is no longer kept.
    Gone,
    /// With an error that nobody promises to survive.
    Refused(String),
}

/// A leader as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// Identity and start of its process.
    pub leader: String,
    /// What it leads in.
    pub epoch: Revision,
}

/// What a fault takes away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hits {
    /// Whoever leads, for a time or for good.
    Leader,
    /// A node.
    Node,
    /// Neither.
    Other,
}

/// Something that was done to the cluster.
#[derive(Debug, Clone)]
pub struct Fault {
    /// In words.
    pub what: String,
    /// What it takes away.
    pub hits: Hits,
    /// When it was done.
    pub from: Instant,
    /// When all was well again.
    pub until: Instant,
}

/// An answer without any disturbance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undisturbed {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Its text.
    pub text: String,
}

impl History {
    /// Notes whoever leads, if that is news.
    pub fn leads(&mut self, leader: &str, epoch: Revision) {
        let reign = Reign { leader: leader.to_owned(), epoch };
        if self.reigns.last() != Some(&reign) {
            self.reigns.push(reign);
        }
    }

    /// Everything that must not have happened, in words. `undisturbed` holds the answer to each question.
    #[must_use]
    pub fn wrongs(&self, undisturbed: &[Undisturbed]) -> Vec<String> {
        let mut wrongs = self.wrong_jobs();
        wrongs.extend(self.wrong_answers(undisturbed));
        wrongs.extend(self.wrong_reigns());
        wrongs
    }

    fn wrong_jobs(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        let mut ids: BTreeMap<&str, &str> = BTreeMap::new();
        for job in &self.jobs {
            let name = format!("job {} ({})", job.id, job.key);
            if ids.insert(&job.id, &job.key).is_some_and(|key| key != job.key) {
                wrongs.push(format!("{name}: another submission was answered with it too"));
            }
            let Some(end) = &job.end else {
                wrongs.push(format!("{name}: was accepted and never ended"));
                continue;
            };
            if !end.succeeded {
                wrongs.push(format!("{name}: failed"));
            }
            let listed = end.listed.iter().map(|(document, _)| document.as_str());
            wrongs.extend(once_each(&name, "listed", &job.documents, listed));
            let unpublished = end.listed.iter().filter(|(_, published)| !published);
            wrongs.extend(unpublished.map(|(document, _)| format!("{name}: {document} isn't published")));
            wrongs.extend(once_each(&name, "visible", &job.documents, end.visible.iter().map(String::as_str)));
        }
        wrongs
    }

    fn wrong_answers(&self, undisturbed: &[Undisturbed]) -> Vec<String> {
        let mut wrongs = Vec::new();
        for read in &self.answers {
            let name = format!("reader {}, question {}", read.reader, read.question);
            let Some(expected) = undisturbed.get(read.question) else {
                wrongs.push(format!("{name}: nobody knows the undisturbed answer"));
                continue;
            };
            match &read.end {
                ReadEnd::Whole if read.tokens == expected.tokens && read.text == expected.text => {}
                ReadEnd::Whole => wrongs.push(format!(
                    "{name}: {} tokens, {:?}, where the undisturbed answer has {}, {:?}",
                    read.tokens.len(),
                    read.text,
                    expected.tokens.len(),
                    expected.text
                )),
                ReadEnd::Refused(why) => {
                    wrongs.push(format!("{name}: ended after {} tokens: {why}", read.tokens.len()))
                }
                ReadEnd::Gone if !self.may_be_gone(read) => wrongs.push(format!(
                    "{name}: gone after {} tokens, though leader and node weren't lost together",
                    read.tokens.len()
                )),
                ReadEnd::Gone => {}
            }
            let prefix = expected.tokens.starts_with(&read.tokens) && expected.text.starts_with(&read.text);
            if read.end != ReadEnd::Whole && !prefix {
                wrongs.push(format!("{name}: what was told isn't how the undisturbed answer begins: {:?}", read.text));
            }
        }
        wrongs
    }

    /// Only an answer under which both the leader and a node were lost.
    fn may_be_gone(&self, read: &Read) -> bool {
        let during = |hits| {
            self.faults.iter().any(|fault| fault.hits == hits && fault.from <= read.over && fault.until >= read.asked)
        };
        during(Hits::Leader) && during(Hits::Node)
    }

    fn wrong_reigns(&self) -> Vec<String> {
        let mut wrongs = Vec::new();
        for pair in self.reigns.windows(2) {
            if pair[1].epoch <= pair[0].epoch {
                wrongs.push(format!(
                    "{} leads in epoch {} after {} led in {}",
                    pair[1].leader, pair[1].epoch, pair[0].leader, pair[0].epoch
                ));
            }
        }
        wrongs
    }

    /// The longest time that each reader was told nothing while a fault lasted, longest first.
    #[must_use]
    pub fn silences(&self, fault: &Fault) -> Vec<Duration> {
        let mut last: BTreeMap<usize, Instant> = BTreeMap::new();
        let mut longest: BTreeMap<usize, Duration> = BTreeMap::new();
        for (reader, at) in &self.tokens {
            if let Some(before) = last.insert(*reader, *at)
                && *at >= fault.from
                && before <= fault.until
            {
                let entry = longest.entry(*reader).or_default();
                *entry = (*entry).max(at.saturating_duration_since(before));
            }
        }
        let mut silences: Vec<_> = longest.into_values().collect();
        silences.sort_unstable_by(|a, b| b.cmp(a));
        silences
    }
}

/// What is missing, what is there more than once, and what nobody asked for.
fn once_each<'a>(
    name: &str,
    what: &str,
    documents: &BTreeSet<String>,
    found: impl Iterator<Item = &'a str>,
) -> Vec<String> {
    let mut times: BTreeMap<&str, usize> = documents.iter().map(|document| (document.as_str(), 0)).collect();
    let mut wrongs = Vec::new();
    for document in found {
        match times.get_mut(document) {
            Some(times) => *times += 1,
            None => wrongs.push(format!("{name}: {document} is {what}, and no document of it")),
        }
    }
    let wrong = times.into_iter().filter(|(_, times)| *times != 1);
    wrongs.extend(wrong.map(|(document, times)| format!("{name}: {document} is {what} {times} times")));
    wrongs
}

/// The value below which so many percent of some durations lie; nothing of none.
#[must_use]
pub fn percentile(durations: &[Duration], percent: usize) -> Option<Duration> {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent.min(100)).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(counter: u64) -> Revision {
        Revision { epoch: 1, counter }
    }

    fn good() -> (History, Vec<Undisturbed>) {
        let documents: BTreeSet<String> = ["a.md".to_owned(), "b.md".to_owned()].into();
        let listed = documents.iter().map(|name| (name.clone(), true)).collect();
        let visible = documents.iter().cloned().collect();
        let end = Some(End { succeeded: true, listed, visible });
        let asked = Instant::now();
        let read = Read {
            reader: 0,
            question: 0,
            asked,
            over: asked + Duration::from_secs(9),
            tokens: vec![1, 2, 3],
            text: "one two three".into(),
            end: ReadEnd::Whole,
        };
        let mut history = History {
            jobs: vec![Accepted { key: "k-1".into(), id: "j-1".into(), documents, end }],
            answers: vec![read],
            ..History::default()
        };
        history.leads("one", epoch(5));
        history.leads("one", epoch(5));
        history.leads("two", epoch(9));
        (history, vec![Undisturbed { tokens: vec![1, 2, 3], text: "one two three".into() }])
    }

    /// What is wrong after a change to a history without wrongs: one thing, with these words in it.
    fn wrong_after(change: impl FnOnce(&mut History), words: &str) {
        let (mut history, undisturbed) = good();
        change(&mut history);
        let wrongs = history.wrongs(&undisturbed);
        assert!(wrongs.len() == 1 && wrongs[0].contains(words), "{words}: {wrongs:?}");
    }

    fn end(history: &mut History) -> &mut End {
        history.jobs[0].end.as_mut().expect("it ended")
    }

    #[test]
    fn a_good_history_has_no_wrongs_and_each_wrong_is_found() {
        let (history, undisturbed) = good();
        assert_eq!(history.wrongs(&undisturbed), [""; 0]);
        assert_eq!(history.reigns.len(), 2, "no news is no reign");
        wrong_after(|history| history.jobs[0].end = None, "never ended");
        wrong_after(|history| end(history).succeeded = false, "failed");
        wrong_after(|history| drop(end(history).listed.pop()), "b.md is listed 0 times");
        wrong_after(|history| end(history).listed[0].1 = false, "a.md isn't published");
        wrong_after(|history| drop(end(history).visible.pop()), "b.md is visible 0 times");
        wrong_after(|history| end(history).visible.push("a.md".into()), "a.md is visible 2 times");
        wrong_after(|history| end(history).visible.push("c.md".into()), "no document of it");
        let doubled = |history: &mut History| {
            let other = Accepted { key: "k-2".into(), ..history.jobs[0].clone() };
            history.jobs.push(other);
        };
        wrong_after(doubled, "another submission");
        wrong_after(|history| history.answers[0].tokens.push(3), "4 tokens");
        wrong_after(|history| history.answers[0].text.push('!'), "undisturbed answer");
        wrong_after(|history| history.answers[0].question = 7, "nobody knows");
        wrong_after(|history| history.answers[0].end = ReadEnd::Refused("no".into()), "no");
        wrong_after(|history| history.answers[0].end = ReadEnd::Gone, "weren't lost together");
        wrong_after(|history| history.leads("one", epoch(5)), "leads in epoch");
        wrong_after(|history| history.leads("three", epoch(9)), "leads in epoch");
    }

    #[test]
    fn an_answer_may_go_only_with_its_leader_and_a_node() {
        let (mut history, undisturbed) = good();
        let from = history.answers[0].asked + Duration::from_secs(1);
        let fault = |hits, from| Fault { what: String::new(), hits, from, until: from + Duration::from_secs(1) };
        history.answers[0].end = ReadEnd::Gone;
        history.faults = vec![fault(Hits::Leader, from), fault(Hits::Other, from)];
        assert_eq!(history.wrongs(&undisturbed).len(), 1);
        history.faults.push(fault(Hits::Node, from + Duration::from_secs(60)));
        assert_eq!(history.wrongs(&undisturbed).len(), 1, "long after it was over");
        history.faults.push(fault(Hits::Node, from));
        assert_eq!(history.wrongs(&undisturbed), [""; 0]);
        history.answers[0].tokens = vec![1, 3];
        assert_eq!(history.wrongs(&undisturbed).len(), 1, "what was told must be true all the same");
    }

    #[test]
    fn silences_are_those_that_a_fault_lies_in() {
        let begun = Instant::now();
        let at = |s| begun + Duration::from_secs(s);
        let tokens = vec![(0, at(0)), (1, at(1)), (0, at(2)), (1, at(7)), (0, at(3)), (0, at(30)), (1, at(31))];
        let history = History { tokens, ..History::default() };
        let fault = Fault { what: "a kill".into(), hits: Hits::Node, from: at(2), until: at(6) };
        assert_eq!(history.silences(&fault), [Duration::from_secs(27), Duration::from_secs(6)]);
        let before = Fault { until: at(0), from: at(0), ..fault };
        assert_eq!(history.silences(&before), [Duration::from_secs(2)]);
    }

    #[test]
    fn percentiles_of_few_and_many() {
        let of = |count: u64| (1..=count).map(Duration::from_secs).collect::<Vec<_>>();
        assert_eq!(percentile(&[], 50), None);
        assert_eq!(percentile(&of(1), 99), Some(Duration::from_secs(1)));
        assert_eq!(percentile(&of(200), 50), Some(Duration::from_secs(100)));
        assert_eq!(percentile(&of(200), 99), Some(Duration::from_secs(198)));
        assert_eq!(percentile(&of(4), 100), Some(Duration::from_secs(4)));
        assert_eq!(percentile(&of(4), 0), Some(Duration::from_secs(1)));
    }
}
