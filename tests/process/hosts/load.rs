//! What people do meanwhile: they chat, and jobs over a folder follow each other. All of it is written down.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ingle_membership::Membership;
use ingle_membership::election::leader;
use ingle_proto::v1::{self, ItemOutcome, JobState};
use ingle_tests::client::{Answer, Client, embed_job, ended, generate_job, object, question};
use ingle_tests::eventually::patience;
use ingle_tests::history::{Accepted, End, History, Read, ReadEnd, Undisturbed};
use ingle_tests::parquet::rows;
use ingle_tests::share::Share;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::world::World;

/// Pause after a call that was refused, and between two looks at a job.
const AGAIN: Duration = Duration::from_millis(200);
/// Longest wait for one answer to a call that isn't a stream.
const CALL: Duration = Duration::from_secs(10);
/// Longest wait for one frame: then the reader asks elsewhere. Longer than any node is waited for.
const FRAME: Duration = Duration::from_secs(15);

/// The kinds of job that follow each other, by the model that does them.
const KINDS: [&str; 2] = ["notes", "words"];

/// See the module. Dropping it ends everybody.
pub(crate) struct Load {
    pub(crate) history: Arc<Mutex<History>>,
    pub(crate) undisturbed: Vec<Undisturbed>,
    readers: usize,
    stop: Arc<AtomicBool>,
    /// Answers that were read to their end, of all readers.
    read: Arc<AtomicUsize>,
    people: JoinSet<()>,
    watching: JoinSet<()>,
}

/// What everybody needs.
#[derive(Clone)]
struct Person {
    clients: Vec<Client>,
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
}

fn ask(number: usize) -> v1::GenerateRequest {
    let mut request = question(&format!("What do embers know of winter number {number}?"));
    request.model = "talk".into();
    request.sampling = Some(v1::Sampling { seed: Some(42 + number as u64), ..Default::default() });
    request
}

pub(crate) fn locked(history: &Mutex<History>) -> MutexGuard<'_, History> {
    history.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Load {
    /// Hears each question's answer while nothing disturbs, and then lets so many people ask all the time while two rows of
    /// jobs go over so many documents.
    pub(crate) async fn begin(world: &World, readers: usize, documents: usize) -> Self {
        let documents: BTreeSet<String> = world.share.documents(documents).into_keys().collect();
        let mut asked = JoinSet::new();
        for number in 0..readers {
            let client = world.clients[number % world.clients.len()].clone();
            asked.spawn(async move {
                let answer = client.generate(ask(number)).await.expect("nothing disturbs it");
                assert_eq!(answer.reason(), v1::FinishReason::Stop);
                (number, Undisturbed { tokens: answer.tokens, text: answer.text })
            });
        }
        let mut undisturbed = asked.join_all().await;
        undisturbed.sort_by_key(|(number, _)| *number);
        let undisturbed: Vec<_> = undisturbed.into_iter().map(|(_, answer)| answer).collect();

        let (history, stop, read) = (Arc::default(), Arc::default(), Arc::default());
        let person = Person { clients: world.clients.clone(), history: Arc::clone(&history), stop: Arc::clone(&stop) };
        let (mut people, mut watching) = (JoinSet::new(), JoinSet::new());
        watching.spawn(watch_leaders(Arc::clone(&world.members), Arc::clone(&history)));
        for reader in 0..readers {
            people.spawn(person.clone().chats(reader, Arc::clone(&read)));
        }
        for kind in KINDS {
            people.spawn(person.clone().submits(kind, documents.clone(), world.share.clone()));
        }
        Self { history, undisturbed, readers, stop, read, people, watching }
    }

    /// Waits until each person, on average, has read another whole answer: the cluster does its work.
    pub(crate) async fn goes_on(&mut self, world: &mut World) {
        let from = self.read.load(Ordering::SeqCst);
        let (read, wanted) = (Arc::clone(&self.read), from + self.readers);
        let people = &mut self.people;
        world
            .until("people to read on", async || {
                // Only a panic ends one of them by now.
                if let Some(ended) = people.try_join_next() {
                    ended.expect("everybody goes on until told to stop");
                }
                let read = read.load(Ordering::SeqCst);
                if read >= wanted { Ok(()) } else { Err(format!("{read} of {wanted} answers read")) }
            })
            .await;
    }

    /// Everybody ends what they are at; the jobs that were accepted end. Then nothing may be wrong.
    pub(crate) async fn end_well(mut self, world: &mut World) {
        self.stop.store(true, Ordering::SeqCst);
        let mut people = std::mem::take(&mut self.people);
        let clients = world.clients.clone();
        let history = Arc::clone(&self.history);
        world
            .until("the end of the last jobs and answers", async || {
                while let Some(ended) = people.try_join_next() {
                    ended.expect("nobody panics");
                }
                let jobs: Vec<_> =
                    locked(&history).jobs.iter().filter(|job| job.end.is_none()).map(|job| job.id.clone()).collect();
                let mut told = Vec::new();
                for id in &jobs {
                    told.push(clients[0].job(id).await.map_err(|status| format!("{status:?}"))?);
                }
                if people.is_empty() { Ok(()) } else { Err(format!("{} people are at it: {told:?}", people.len())) }
            })
            .await;
        self.watching.shutdown().await;
        let history = locked(&self.history);
        let wrongs = history.wrongs(&self.undisturbed);
        let (jobs, answers) = (history.jobs.len(), history.answers.len());
        assert!(wrongs.is_empty(), "{} wrongs in {jobs} jobs and {answers} answers: {wrongs:#?}", wrongs.len());
        assert!(jobs >= KINDS.len() && answers >= self.readers, "{jobs} jobs, {answers} answers: nothing was proven");
        eprintln!("{jobs} jobs and {answers} answers under {} faults: none lost, none twice", history.faults.len());
    }
}

async fn watch_leaders(members: Arc<dyn Membership>, history: Arc<Mutex<History>>) {
    loop {
        // One look after the other: what is seen later was true later.
        if let Ok(Ok(Some((candidate, epoch)))) = tokio::time::timeout(CALL, leader(&*members)).await {
            locked(&history).leads(&format!("{}/{}", candidate.id, candidate.incarnation), epoch);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Person {
    /// One question after the other until told to stop.
    async fn chats(self, reader: usize, read: Arc<AtomicUsize>) {
        while !self.stop.load(Ordering::SeqCst) {
            let asked = Instant::now();
            let (answer, end) = self.reads(reader).await;
            let (tokens, text) = (answer.tokens, answer.text);
            let over = Instant::now();
            locked(&self.history).answers.push(Read { reader, question: reader, asked, over, tokens, text, end });
            read.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reads one answer, taking it up again by any coordinator whenever it breaks.
    async fn reads(&self, reader: usize) -> (Answer, ReadEnd) {
        let (mut request, mut answer, mut at) = (ask(reader), Answer::default(), reader);
        let mut last = Instant::now();
        loop {
            let client = &self.clients[at % self.clients.len()];
            let mut inference = client.inference.clone();
            let broke = match tokio::time::timeout(FRAME, inference.generate(request.clone())).await {
                Err(_) => None,
                Ok(Err(status)) => Some(status),
                Ok(Ok(response)) => {
                    let mut frames = response.into_inner();
                    loop {
                        match tokio::time::timeout(FRAME, frames.message()).await {
                            Err(_) | Ok(Ok(None)) => break None,
                            Ok(Err(status)) => break Some(status),
                            Ok(Ok(Some(frame))) => {
                                last = Instant::now();
                                let before = answer.tokens.len();
                                request.resume_token.clone_from(&frame.resume_token);
                                // It panics at a token or a byte that was told before, or that comes too early.
                                answer.take(frame);
                                if answer.tokens.len() > before {
                                    locked(&self.history).tokens.push((reader, last));
                                }
                                if answer.finished.is_some() {
                                    return (answer, ReadEnd::Whole);
                                }
                            }
                        }
                    }
                }
            };
            match broke.as_ref().map(Status::code) {
                Some(Code::NotFound) if answer.started.is_some() => return (answer, ReadEnd::Gone),
                Some(Code::InvalidArgument | Code::Unimplemented | Code::DataLoss | Code::PermissionDenied) => {
                    return (answer, ReadEnd::Refused(format!("{broke:?}")));
                }
                _ => {}
            }
            if last.elapsed() > 3 * patience() {
                return (answer, ReadEnd::Refused(format!("no frame for {:?}: {broke:?}", last.elapsed())));
            }
            at += 1;
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// One job after the other until told to stop.
    async fn submits(self, kind: &'static str, documents: BTreeSet<String>, share: Share) {
        let mut number = 0;
        while !self.stop.load(Ordering::SeqCst) {
            number += 1;
            let (key, output) = (format!("{kind} {number}"), format!("{kind}-{number}"));
            let spec = spec(kind, &output);
            let Some(id) = self.submitted(&spec, &key).await else { continue };
            let place = {
                let mut history = locked(&self.history);
                history.jobs.push(Accepted { key, id: id.clone(), documents: documents.clone(), end: None });
                history.jobs.len() - 1
            };
            let Some(end) = self.job_ends(&id, &output, &share).await else { return };
            locked(&self.history).jobs[place].end = Some(end);
        }
    }

    /// Submits under one key until a coordinator accepts it: a call whose answer was lost may have been accepted too.
    async fn submitted(&self, spec: &v1::JobSpec, key: &str) -> Option<String> {
        let begun = Instant::now();
        for client in self.clients.iter().cycle() {
            match tokio::time::timeout(CALL, client.try_submit(spec.clone(), key)).await {
                Ok(Ok(answer)) => return Some(answer.job.expect("a job").job_id),
                // An export isn't found while no gateway is known.
                Ok(Err(status)) if !passes(status.code()) && status.code() != Code::NotFound => {
                    panic!("{key}: {status:?}")
                }
                refused => assert!(begun.elapsed() < 3 * patience(), "{key}: {refused:?}"),
            }
            tokio::time::sleep(AGAIN).await;
        }
        None
    }

    /// Waits for a job's end, by whichever coordinator answers, and looks at what came of it.
    async fn job_ends(&self, id: &str, output: &str, share: &Share) -> Option<End> {
        for client in self.clients.iter().cycle() {
            match tokio::time::timeout(CALL, client.job(id)).await {
                Ok(Ok(job)) if ended(&job) => {
                    if job.state() != JobState::Succeeded {
                        eprintln!("{job:?}");
                    }
                    let listed = self.listed(id).await;
                    let visible = visible(share, output);
                    return Some(End { succeeded: job.state() == JobState::Succeeded, listed, visible });
                }
                Ok(Err(status)) if !passes(status.code()) => panic!("job {id}: {status:?}"),
                // Who waits for everything to end knows how long that may take.
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
        None
    }

    /// A job's documents as they are listed, each as often as it is.
    async fn listed(&self, id: &str) -> Vec<(String, bool)> {
        let mut found = Vec::new();
        let mut page_token = String::new();
        for client in self.clients.iter().cycle() {
            let request = v1::ListItemsRequest {
                job_id: id.into(),
                page_size: 500,
                page_token: page_token.clone(),
                ..Default::default()
            };
            let mut jobs = client.jobs.clone();
            match tokio::time::timeout(CALL, jobs.list_items(request)).await {
                Ok(Ok(page)) => {
                    let page = page.into_inner();
                    for item in &page.items {
                        let name = String::from_utf8_lossy(&item.name).into_owned();
                        let published = item.outcome() == ItemOutcome::Published;
                        if !published {
                            eprintln!("{item:?}");
                        }
                        found.push((name, published));
                    }
                    page_token = page.next_page_token;
                    if page_token.is_empty() {
                        break;
                    }
                }
                Ok(Err(status)) if !passes(status.code()) => panic!("items of {id}: {status:?}"),
                _ => tokio::time::sleep(AGAIN).await,
            }
        }
        found
    }
}

/// The job of a kind into a place of its own.
pub(crate) fn spec(kind: &str, output: &str) -> v1::JobSpec {
    let spec = if kind == "notes" { generate_job() } else { embed_job() };
    v1::JobSpec { model: kind.into(), output: Some(object(output)), ..spec }
}

/// Whether a refusal may pass by itself.
fn passes(code: Code) -> bool {
    !matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
    )
}

/// Documents with a visible result below a place, each as often as one is there: of an answer both files, of vectors its
/// passages, each once.
fn visible(share: &Share, output: &str) -> Vec<String> {
    let mut found = Vec::new();
    let names: BTreeSet<String> = share.names(output).into_iter().collect();
    for name in &names {
        if let Some(document) = name.strip_suffix(".json") {
            let json = share.json(&format!("{output}/{name}"));
            let whole = json["path"] == document
                && json["usage"]["output_tokens"] == super::world::NOTE_TOKENS
                && names.contains(&format!("{document}.txt"));
            found.push(if whole { document.to_owned() } else { format!("{name} (not whole: {json})") });
        } else if name.strip_suffix(".txt").is_some_and(|document| !names.contains(&format!("{document}.json"))) {
            found.push(format!("{name} (without its other half)"));
        } else if !name.ends_with(".txt") && !name.ends_with(".parquet") {
            found.push(name.clone());
        }
    }
    let mut passages = BTreeSet::new();
    for row in rows(share, output) {
        let (first, twice) = (row.passage == 0, !passages.insert((row.path.clone(), row.passage)));
        if first || twice {
            found.push(row.path);
        }
    }
    found
}
