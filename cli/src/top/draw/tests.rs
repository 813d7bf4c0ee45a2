//! Frames of made states, line by line.

use ingle_proto::v1::input_spec::Input;
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::super::state::{Key, Look};
use super::*;

const GIB: u64 = 1 << 30;

fn node(id: &str, name: &str, reserved: u64, budget: u64) -> v1::NodeStatus {
    v1::NodeStatus {
        node_id: id.into(),
        name: name.into(),
        address: "10.0.0.2:7710".into(),
        version: "0.2.0".into(),
        state: NodeState::Ready.into(),
        memory_reserved: reserved,
        capacity: Some(v1::Capacity { memory_budget_bytes: budget, ..Default::default() }),
        ..Default::default()
    }
}

fn holding(name: &str) -> v1::LoadedModel {
    v1::LoadedModel { model: Some(v1::ModelRef { name: name.into(), ..Default::default() }), ..Default::default() }
}

fn job(id: &str, created_ms: i64, state: JobState, kind: v1::JobKind, path: &str) -> v1::Job {
    let at = |path: &str| v1::ObjectRef { export: "docs".into(), path: path.as_bytes().to_vec().into() };
    let spec = v1::JobSpec {
        kind: kind.into(),
        input: Some(v1::InputSpec { input: Some(Input::Tree(at(path))) }),
        output: Some(at("out")),
        ..Default::default()
    };
    v1::Job { job_id: id.into(), created_ms, state: state.into(), spec: Some(spec), ..Default::default() }
}

fn look(at_ms: i64, busy_ms: u64, rate: f64) -> Look {
    let nuc = v1::NodeStatus {
        running: 2,
        busy_ms,
        temperature_celsius: 62.4,
        power_watts: 45.2,
        memory_pressure: 0.02,
        loaded: vec![holding("smollm2-135m-instruct"), holding("all-MiniLM-L6-v2")],
        ..node("n-1", "nuc", GIB * 3 / 2, 14 * GIB)
    };
    let spark = v1::NodeStatus {
        temperature_celsius: 91.0,
        power_watts: 120.0,
        throttled: true,
        ..node("n-2", "spark", 60 * GIB, 110 * GIB)
    };
    let lost = v1::NodeStatus {
        state: NodeState::Lost.into(),
        reason: "silent for over 10 s".into(),
        ..node("n-3", "", 0, 0)
    };
    let running = v1::Job {
        items_per_second: rate,
        eta_ms: 200_000,
        counts: Some(v1::ItemCounts { published: 122, failed: 1, total: 10_000, ..Default::default() }),
        ..job("j-2", 2, JobState::Running, v1::JobKind::Embed, "")
    };
    let ended = v1::Job {
        counts: Some(v1::ItemCounts { published: 20, total: 20, ..Default::default() }),
        ..job("j-1", 1, JobState::Succeeded, v1::JobKind::Generate, "letters")
    };
    let status = v1::GetStatusResponse {
        version: "0.2.0".into(),
        epoch: Some(v1::Epoch { generation: 1, revision: 7 }),
        nodes_ready: 2,
        nodes_total: 3,
        jobs_open: 2,
        items_queued: 1234,
        items_running: 12,
        gateway_ready: true,
        ..Default::default()
    };
    Look { at_ms, status, nodes: vec![nuc, spark, lost], jobs: vec![ended, running] }
}

fn top() -> Top {
    let mut top = Top::new("http://127.0.0.1:7700", look(1_000, 500, 3.0));
    top.take(look(2_000, 870, 4.5));
    top
}

fn frame(top: &Top, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a terminal in memory");
    terminal.draw(|frame| draw(top, 9_000, true, frame.buffer_mut())).expect("it draws");
    lines(terminal.backend().buffer())
}

const FRAME: [&str; 11] = [
    "http://127.0.0.1:7700  0.2.0  epoch 1.7  2 of 3 nodes ready  gateway ready",
    "2 jobs open  1234 documents queued, 12 running  4.5/s ▆█  165 W",
    "",
    "NODE           STATE     BUSY RUNS           MEMORY   HEAT  POWER PRESS MODELS",
    "n-3            lost       0 %    0          0 B/0 B      –      –     –",
    "nuc            ready     37 %    2   1.5 GiB/14 GiB  62 °C   45 W   2 % smollm2…",
    "spark          ready      0 %    0   60 GiB/110 GiB 91 °C!  120 W     –",
    "",
    "JOB     STATE      KIND                DONE  BAD     RATE        LEFT INPUT",
    "j-2     running    embed          123/10000    1    4.5/s  3 min 20 s nas://doc…",
    "j-1     succeeded  generate           20/20    0        –           – nas://doc…",
];

#[test]
fn a_terminal_of_eighty_by_twenty_four() {
    let mut expected: Vec<String> = FRAME.iter().map(|line| (*line).to_owned()).collect();
    expected.resize(22, String::new());
    expected.push("j-2  nas://docs/ → nas://docs/out".into());
    expected.push("q quit  p pause  s sort: newest jobs first  ↑↓ move  Tab nodes  ? help".into());
    assert_eq!(frame(&top(), 80, 24), expected);
}

#[test]
fn the_keys_change_what_is_seen() {
    let mut top = top();
    top.key(Key::Other);
    top.key(Key::Sort);
    top.key(Key::Sort);
    let lines = frame(&top, 80, 24);
    let first: Vec<&str> = lines[4..7].iter().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(first, ["spark", "nuc", "n-3"], "the hottest first");
    assert_eq!(lines[22], "n-2 at 10.0.0.2:7710  0.2.0");
    assert!(lines[23].contains("nodes by heat") && lines[23].contains("Tab jobs"), "{}", lines[23]);
    top.key(Key::End);
    assert!(frame(&top, 80, 24)[22].ends_with("silent for over 10 s"));
    top.key(Key::Pause);
    assert_eq!(frame(&top, 80, 24)[2], "paused: p goes on");
    top.key(Key::Help);
    let help = frame(&top, 80, 24);
    assert!(help[3].starts_with("q, Esc, Ctrl-C") && help[23] == "q leaves this page", "{help:?}");
    assert!(help.iter().all(|line| line.chars().count() <= 80));
}

#[test]
fn a_coordinator_that_is_away_is_said_and_the_rest_stays() {
    let mut top = top();
    top.lost(4_000, "can't reach the coordinator".into());
    let lines = frame(&top, 80, 24);
    assert_eq!(lines[2], "no answer for 5.0 s: can't reach the coordinator; trying again");
    assert_eq!(lines[3], FRAME[3]);
}

#[test]
fn more_than_there_is_room_for_scrolls() {
    let mut look = look(1_000, 0, 1.0);
    look.nodes = (0..20).map(|i| node(&format!("n-{i:02}"), "", GIB, GIB)).collect();
    look.jobs = (0..20).map(|i| job(&format!("j-{i}"), i, JobState::Running, v1::JobKind::Ocr, "")).collect();
    let mut top = Top::new("x", look);
    let lines = frame(&top, 80, 24);
    assert!(lines[3].ends_with(" 1–8 of 20") && lines[11].is_empty() && lines[12].starts_with("JOB"), "{lines:?}");
    assert!(lines[13].starts_with("j-19 ") && lines[20].starts_with("j-12 ") && lines[21].is_empty(), "{lines:?}");
    top.key(Key::End);
    let lines = frame(&top, 80, 24);
    assert!(lines[12].ends_with(" 13–20 of 20") && lines[20].starts_with("j-0 "), "{lines:?}");
}

#[test]
fn any_size_can_be_drawn() {
    let mut top = top();
    for live in [true, false] {
        for (width, height) in [(1, 1), (3, 2), (20, 7), (79, 9), (300, 100)] {
            for help in [true, false] {
                top.help = help;
                let mut buffer = Buffer::empty(Rect::new(0, 0, width, height));
                draw(&top, 0, live, &mut buffer);
                assert_eq!(lines(&buffer).len(), usize::from(height));
            }
        }
    }
    top.help = false;
    let wide = frame(&top, 120, 24);
    assert!(wide[5].ends_with("  2 % smollm2-135m-instruct all-MiniLM-L…"), "{}", wide[5]);
}

#[test]
fn a_frame_for_a_pipe_has_every_row_and_no_keys() {
    let top = top();
    let mut buffer = Buffer::empty(Rect::new(0, 0, 80, height(&top)));
    draw(&top, 0, false, &mut buffer);
    let lines = lines(&buffer);
    assert_eq!((lines.len(), lines.last().map(String::as_str)), (11, Some(FRAME[10])));
}
