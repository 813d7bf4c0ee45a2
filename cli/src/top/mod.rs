//! `ingle top`: nodes, jobs, rates and heat as they are now, drawn anew every second.

mod draw;
mod state;

use std::pin::Pin;
use std::time::Duration;

use clap::Args;
use ingle_daemon::grpc::Channel;
use ingle_proto::v1::{self, JobState};
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use v1::cluster_client::ClusterClient;
use v1::jobs_client::JobsClient;

use self::state::{Key, Look, Top};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human::{now_ms, parse_duration};
use crate::{commands::status, json};

/// How long a look may take before the coordinator counts as away.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// How often the keyboard's thread looks whether anybody still wants keys.
const KEYS_POLL: Duration = Duration::from_millis(250);
/// Keys that wait to be done; further ones wait with whoever presses them.
const KEYS_MAX: usize = 64;
/// Most open jobs that are looked at, and most ended ones.
const OPEN_MAX: u32 = 500;
const ENDED_MAX: u32 = 20;
/// Columns of a frame that goes nowhere with a width.
const COLUMNS: u16 = 100;

const EXAMPLES: &str = "\
Keys: q leaves, p pauses, s sorts, Tab goes to the other table, the arrows move, ? explains.
Where standard output is no terminal, one frame is printed, as with --once.

Examples:
  ingle top
  ingle top --every 5s
  ingle top --once                                # a frame as text
  ingle top --json | jq '.nodes[] | {name, temperature_celsius, power_watts}'
  while sleep 60; do ingle top --json >> top.jsonl; done";

/// Watch nodes, jobs, rates and heat, drawn anew every second
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopArgs {
    /// Print one frame as text, and end
    #[arg(long)]
    once: bool,
    /// Pause between two looks, from 200ms to 1h
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = pause)]
    every: Duration,
}

fn pause(text: &str) -> Result<Duration, String> {
    let every = parse_duration(text)?;
    let range = Duration::from_millis(200)..=Duration::from_secs(3600);
    if range.contains(&every) { Ok(every) } else { Err(format!("expected from 200ms to 1h, got {text:?}")) }
}

pub(crate) async fn run(client: &Client, args: TopArgs) -> Result<(), Failure> {
    let client = client.hurried(LOOK_WITHIN);
    // One that was never there isn't waited for.
    let mut watcher = Watcher { client: client.clone(), lines: None };
    let look = Box::pin(watcher.look()).await?;
    let out = client.out;
    if out.json {
        return out.json(&snapshot(&look));
    }
    let top = Top::new(&client.endpoint, look);
    if args.once || !out.terminal {
        let width = out.width().and_then(|width| u16::try_from(width).ok()).unwrap_or(COLUMNS);
        let mut buffer = Buffer::empty(Rect::new(0, 0, width, draw::height(&top)));
        draw::draw(&top, now_ms(), false, &mut buffer);
        return draw::lines(&buffer).iter().try_for_each(|line| out.line(line));
    }
    live(watcher, top, args.every).await
}

/// What one look holds, for scripts.
fn snapshot(look: &Look) -> Value {
    json!({
        "at_ms": look.at_ms,
        "status": status::to_json(&look.status),
        "nodes": look.nodes.iter().map(json::node).collect::<Value>(),
        "jobs": look.jobs.iter().map(json::job).collect::<Value>(),
    })
}

/// Looks at the cluster over one connection as long as that answers.
struct Watcher {
    client: Client,
    lines: Option<(ClusterClient<Channel>, JobsClient<Channel>)>,
}

impl Watcher {
    async fn look(&mut self) -> Result<Look, Failure> {
        // Connected anew after a failure: of several coordinators another may be there.
        let (cluster, jobs) = match self.lines.take() {
            Some(lines) => lines,
            None => (self.client.cluster().await?, self.client.jobs().await?),
        };
        let look = Box::pin(look(&self.client, &cluster, &jobs)).await?;
        self.lines = Some((cluster, jobs));
        Ok(look)
    }
}

async fn look(client: &Client, cluster: &ClusterClient<Channel>, jobs: &JobsClient<Channel>) -> Result<Look, Failure> {
    let open = [JobState::Listing, JobState::Running, JobState::Paused, JobState::Cancelling, JobState::Standing];
    let ended = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
    let listed = |states: &[JobState], page_size| {
        let states = states.iter().map(|state| i32::from(*state)).collect();
        let request = client.request(v1::ListJobsRequest { page_size, states, ..Default::default() });
        let mut jobs = jobs.clone();
        async move { client.call(jobs.list_jobs(request)).await }
    };
    let status = async {
        let mut cluster = cluster.clone();
        client.call(cluster.get_status(client.request(v1::GetStatusRequest {}))).await
    };
    let nodes = async {
        let mut cluster = cluster.clone();
        client.call(cluster.list_nodes(client.request(v1::ListNodesRequest {}))).await
    };
    let (status, nodes, open, ended) =
        tokio::try_join!(status, nodes, listed(&open, OPEN_MAX), listed(&ended, ENDED_MAX))?;
    let jobs = open.jobs.into_iter().chain(ended.jobs).collect();
    Ok(Look { at_ms: now_ms(), status, nodes: nodes.nodes, jobs })
}

/// Gives the terminal back as it was, however we leave; a panic's hook does the same before it speaks.
struct Restored;

impl Drop for Restored {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

type Looking = Pin<Box<dyn Future<Output = (Watcher, Result<Look, Failure>)>>>;

fn looking(mut watcher: Watcher) -> Looking {
    Box::pin(async move {
        let look = Box::pin(watcher.look()).await;
        (watcher, look)
    })
}

async fn live(watcher: Watcher, mut top: Top, every: Duration) -> Result<(), Failure> {
    let mut terminal = ratatui::try_init()?;
    let _restored = Restored;
    let mut keys = keyboard();
    let mut ended = signal(SignalKind::terminate())?;
    let mut next = Instant::now() + every;
    let mut idle = Some(watcher);
    let mut under_way: Option<Looking> = None;
    loop {
        terminal.draw(|frame| draw::draw(&top, now_ms(), true, frame.buffer_mut()))?;
        tokio::select! {
            key = keys.recv() => match key {
                Some(key) if top.key(key) => return Ok(()),
                Some(_) => {}
                None => return Err(Failure::new(Exit::WorkFailed, "the terminal can't be read any more")),
            },
            (watcher, looked) = finished(&mut under_way) => {
                under_way = None;
                idle = Some(watcher);
                next = Instant::now() + every;
                match looked {
                    Ok(look) => top.take(look),
                    Err(failure) => top.lost(now_ms(), failure.message),
                }
            }
            () = tokio::time::sleep_until(next), if under_way.is_none() => {
                next = Instant::now() + every;
                if !top.paused {
                    under_way = idle.take().map(looking);
                }
            }
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = ended.recv() => return Ok(()),
        }
    }
}

/// A look that is under way; without one it never comes.
async fn finished(under_way: &mut Option<Looking>) -> (Watcher, Result<Look, Failure>) {
    match under_way {
        Some(look) => look.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Keys as they are pressed, read on a thread of its own: reading blocks.
fn keyboard() -> mpsc::Receiver<Key> {
    let (pressed, keys) = mpsc::channel(KEYS_MAX);
    // Ends within a moment when nobody listens, and with the process at the latest.
    std::thread::spawn(move || {
        while !pressed.is_closed() {
            let read = match event::poll(KEYS_POLL) {
                Ok(false) => continue,
                Ok(true) => event::read(),
                Err(error) => Err(error),
            };
            let Ok(read) = read else { return };
            if let Some(key) = meaning(&read)
                && pressed.blocking_send(key).is_err()
            {
                return;
            }
        }
    });
    keys
}

fn meaning(event: &Event) -> Option<Key> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => of_key(key),
        Event::Resize(..) => Some(Key::Redraw),
        _ => None,
    }
}

fn of_key(key: &KeyEvent) -> Option<Key> {
    // The terminal is raw: Ctrl-C comes as a key, and no signal is made of it.
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'd') => Some(Key::Quit),
            KeyCode::Char('l') => Some(Key::Redraw),
            _ => None,
        };
    }
    Some(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
        KeyCode::Char('p' | ' ') => Key::Pause,
        KeyCode::Char('s') => Key::Sort,
        KeyCode::Char('?' | 'h') => Key::Help,
        KeyCode::Tab | KeyCode::BackTab => Key::Other,
        KeyCode::Up | KeyCode::Char('k') => Key::Up,
        KeyCode::Down | KeyCode::Char('j') => Key::Down,
        KeyCode::PageUp => Key::PageUp,
        KeyCode::PageDown => Key::PageDown,
        KeyCode::Home => Key::Home,
        KeyCode::End => Key::End,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_mean_what_the_help_says() {
        let press = |code, modifiers| meaning(&Event::Key(KeyEvent::new(code, modifiers)));
        for (code, key) in [
            (KeyCode::Char('q'), Some(Key::Quit)),
            (KeyCode::Esc, Some(Key::Quit)),
            (KeyCode::Char('p'), Some(Key::Pause)),
            (KeyCode::Char('s'), Some(Key::Sort)),
            (KeyCode::Tab, Some(Key::Other)),
            (KeyCode::Up, Some(Key::Up)),
            (KeyCode::Char('x'), None),
        ] {
            assert_eq!(press(code, KeyModifiers::NONE), key, "{code:?}");
        }
        assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Some(Key::Quit));
        assert_eq!(press(KeyCode::Char('s'), KeyModifiers::CONTROL), None);
        let released = KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::from(KeyCode::Char('q')) };
        assert_eq!(meaning(&Event::Key(released)), None);
        assert_eq!(meaning(&Event::Resize(80, 24)), Some(Key::Redraw));
    }

    #[test]
    fn the_pause_has_a_range() {
        assert_eq!(pause("1s"), Ok(Duration::from_secs(1)));
        for bad in ["0", "100ms", "2h", "soon"] {
            assert!(pause(bad).is_err(), "{bad}");
        }
    }
}
