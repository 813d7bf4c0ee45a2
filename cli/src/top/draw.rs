//! From what `ingle top` knows to what a terminal shows. Pure: a state and an area become a buffer.

use std::time::Duration;

use ingle_proto::v1::{self, JobState, NodeState};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::state::{JobOrder, NodeOrder, Table, Top, name};
use crate::commands::wait;
use crate::{human, json};

/// Lines that aren't rows of the tables: three above, two headings, one between, the selected row's and that of the keys.
const FIXED: u16 = 8;
/// Levels of the curve.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// What a cell shows that nobody knows.
const UNKNOWN: &str = "–";

const HELP: [&str; 13] = [
    "q, Esc, Ctrl-C   leave",
    "p, Space         stop looking, and go on",
    "s                sort the table by something else",
    "Tab              the other table",
    "↑ ↓ k j          one row; PgUp PgDn Home End further",
    "?, h             this page",
    "",
    "BUSY      how much of the time since the last look the node computed",
    "MEMORY    what its models take, of what they may",
    "HEAT      the hottest of processor and accelerators; ! when it is slowed down by heat",
    "POWER     of processor and accelerators",
    "PRESS     share of ten seconds in which something waited for memory",
    "–         the machine doesn't tell",
];

/// A column: its heading, how wide it is, and whether it holds numbers. The last takes what is left.
struct Column(&'static str, usize, bool);

const NODES: [Column; 9] = [
    Column("NODE", 14, false),
    Column("STATE", 8, false),
    Column("BUSY", 5, true),
    Column("RUNS", 4, true),
    Column("MEMORY", 16, true),
    Column("HEAT", 6, true),
    Column("POWER", 6, true),
    Column("PRESS", 5, true),
    Column("MODELS", 0, false),
];

const JOBS: [Column; 8] = [
    Column("JOB", 7, false),
    Column("STATE", 10, false),
    Column("KIND", 8, false),
    Column("DONE", 15, true),
    Column("BAD", 4, true),
    Column("RATE", 8, true),
    Column("LEFT", 11, true),
    Column("INPUT", 0, false),
];

/// Draws all of it. `live`: for somebody who can press keys; without it every row is wanted and none is selected.
pub(super) fn draw(top: &Top, now_ms: i64, live: bool, buffer: &mut Buffer) {
    let area = *buffer.area();
    let mut pen = Pen { buffer, area, y: 0 };
    head(&mut pen, top, now_ms);
    if top.help {
        HELP.iter().for_each(|line| pen.line(line, Style::new()));
        pen.bottom(1, "q leaves this page", Style::new().add_modifier(Modifier::DIM));
        return;
    }
    let room = usize::from(area.height.saturating_sub(if live { FIXED } else { FIXED - 2 }));
    let (nodes, jobs) = (top.nodes(), top.jobs());
    let for_nodes = nodes.len().min(room.saturating_sub(jobs.len()).max(room / 2));
    let for_jobs = jobs.len().min(room - for_nodes);
    let rows = nodes.iter().map(|node| (node_cells(top, node), node_style(node))).collect();
    table(&mut pen, top, (Table::Nodes, &NODES, rows), for_nodes, live);
    pen.line("", Style::new());
    let rows = jobs.iter().map(|job| (job_cells(job), job_style(job))).collect();
    table(&mut pen, top, (Table::Jobs, &JOBS, rows), for_jobs, live);
    if live {
        pen.bottom(2, &detail(top, &nodes, &jobs), Style::new());
        pen.bottom(1, &keys(top), Style::new().add_modifier(Modifier::DIM));
    }
}

/// How many lines a frame with every row has.
pub(super) fn height(top: &Top) -> u16 {
    u16::try_from(top.look.nodes.len() + top.look.jobs.len()).unwrap_or(u16::MAX / 2).min(4_000) + FIXED - 2
}

/// The buffer's lines as text.
pub(super) fn lines(buffer: &Buffer) -> Vec<String> {
    let area = *buffer.area();
    let line = |y| {
        let cells = (area.left()..area.right()).filter_map(|x| buffer.cell((x, y)));
        cells.map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned()
    };
    (area.top()..area.bottom()).map(line).collect()
}

/// Where the next line goes.
struct Pen<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
    y: u16,
}

impl Pen<'_> {
    fn line(&mut self, text: &str, style: Style) {
        self.at(self.y, text, style);
        self.y += 1;
    }

    /// The n-th line from below.
    fn bottom(&mut self, n: u16, text: &str, style: Style) {
        if let Some(y) = self.area.height.checked_sub(n) {
            self.at(y, text, style);
        }
    }

    fn at(&mut self, y: u16, text: &str, style: Style) {
        if y < self.area.height {
            let width = usize::from(self.area.width);
            self.buffer.set_stringn(self.area.x, self.area.y + y, text, width, style);
        }
    }
}

fn head(pen: &mut Pen<'_>, top: &Top, now_ms: i64) {
    let status = &top.look.status;
    let epoch = status.epoch.unwrap_or_default();
    let gateway = if status.gateway_ready { "gateway ready" } else { "gateway NOT READY" };
    pen.line(
        &format!(
            "{}  {}  epoch {}.{}  {} of {} nodes ready  {gateway}",
            top.endpoint, status.version, epoch.generation, epoch.revision, status.nodes_ready, status.nodes_total
        ),
        Style::new().add_modifier(Modifier::BOLD),
    );
    let watts: f64 = top.look.nodes.iter().map(|node| node.power_watts).filter(|watts| watts.is_finite()).sum();
    let power = if watts > 0.0 { format!("  {watts:.0} W") } else { String::new() };
    let rate = top.rates.back().copied().unwrap_or(0.0);
    pen.line(
        &format!(
            "{} jobs open  {} documents queued, {} running  {} {}{power}",
            status.jobs_open,
            status.items_queued,
            status.items_running,
            human::rate(rate),
            curve(top)
        ),
        Style::new(),
    );
    match &top.away {
        Some((since, why)) => {
            let gone = Duration::from_millis(now_ms.saturating_sub(*since).max(0).unsigned_abs());
            let words = format!("no answer for {}: {}; trying again", human::duration(gone), human::cut(why, 300));
            pen.line(&words, Style::new().fg(Color::Red));
        }
        None if top.paused => pen.line("paused: p goes on", Style::new().fg(Color::Yellow)),
        None => pen.line("", Style::new()),
    }
}

/// The rates of the last looks, against the highest of them.
fn curve(top: &Top) -> String {
    let most = top.rates.iter().copied().fold(0.0, f64::max);
    if most <= 0.0 {
        return String::new();
    }
    let level = |rate: &f64| LEVELS[((rate / most * 7.0).round() as usize).min(7)];
    top.rates.iter().map(level).collect()
}

type Row = (Vec<String>, Style);

fn table(pen: &mut Pen<'_>, top: &Top, (which, columns, rows): (Table, &[Column], Vec<Row>), shown: usize, live: bool) {
    let width = usize::from(pen.area.width);
    let selected = top.selected(which);
    // What is selected is seen, with as much above it as there is room for.
    let first = if live { (selected + 1).saturating_sub(shown) } else { 0 };
    let headings: Vec<String> = columns.iter().map(|column| column.0.to_owned()).collect();
    let mut line = columns_of(columns, &headings, width);
    if shown < rows.len() {
        // Where there is more than is shown, that is said at the heading's end.
        let more = format!(" {}–{} of {}", (first + 1).min(first + shown), first + shown, rows.len());
        let kept = width.saturating_sub(more.chars().count());
        line = format!("{:kept$}{more}", line.chars().take(kept).collect::<String>());
    }
    pen.line(&line, Style::new().add_modifier(Modifier::BOLD));
    let focused = live && top.focus == which;
    for (at, (cells, style)) in rows.iter().enumerate().skip(first).take(shown) {
        let style = if focused && at == selected { style.add_modifier(Modifier::REVERSED) } else { *style };
        pen.line(&columns_of(columns, cells, width), style);
    }
}

fn columns_of(columns: &[Column], cells: &[String], width: usize) -> String {
    // Names get a third of what a wider terminal gives.
    let wider = (width.saturating_sub(80) / 3).min(16);
    let mut line = String::new();
    for (at, (column, cell)) in columns.iter().zip(cells).enumerate() {
        let Column(_, wide, number) = column;
        let wide = if at == 0 { wide + wider } else { *wide };
        if wide == 0 {
            line.push_str(&human::cut(cell, width.saturating_sub(line.chars().count())));
            break;
        }
        let text = human::cut(cell, wide);
        let pad = " ".repeat(wide - text.chars().count());
        let padded = if *number { format!("{pad}{text} ") } else { format!("{text}{pad} ") };
        line.push_str(&padded);
    }
    line
}

fn node_cells(top: &Top, node: &v1::NodeStatus) -> Vec<String> {
    let capacity = node.capacity.clone().unwrap_or_default();
    let models = node.loaded.iter().filter_map(|loaded| loaded.model.as_ref()).map(|model| model.name.as_str());
    let known = |value: f64, text: String| if value > 0.0 && value.is_finite() { text } else { UNKNOWN.to_owned() };
    let hot = if node.throttled { "!" } else { "" };
    vec![
        name(node).to_owned(),
        json::node_state(node.state()),
        top.busy(node).map_or_else(|| UNKNOWN.to_owned(), |busy| format!("{:.0} %", busy * 100.0)),
        node.running.to_string(),
        format!("{}/{}", human::bytes(node.memory_reserved), human::bytes(capacity.memory_budget_bytes)),
        known(node.temperature_celsius, format!("{:.0} °C{hot}", node.temperature_celsius)),
        known(node.power_watts, format!("{:.0} W", node.power_watts)),
        known(node.memory_pressure, format!("{:.0} %", node.memory_pressure * 100.0)),
        models.collect::<Vec<_>>().join(" "),
    ]
}

fn node_style(node: &v1::NodeStatus) -> Style {
    match node.state() {
        NodeState::Lost => Style::new().fg(Color::Red),
        _ if node.throttled => Style::new().fg(Color::Red),
        NodeState::Suspect | NodeState::Draining | NodeState::Drained => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

fn job_cells(job: &v1::Job) -> Vec<String> {
    let spec = job.spec.clone().unwrap_or_default();
    let counts = job.counts.unwrap_or_default();
    let over = wait::ended(job.state());
    let left = Duration::from_millis(job.eta_ms.max(0).unsigned_abs());
    vec![
        job.job_id.clone(),
        json::job_state(job.state()),
        json::kind(spec.kind()),
        format!("{}/{}", wait::settled(&counts), counts.total),
        (counts.failed + counts.quarantined + counts.conflict).to_string(),
        if over { UNKNOWN.to_owned() } else { human::rate(job.items_per_second) },
        if over || job.eta_ms <= 0 { UNKNOWN.to_owned() } else { human::duration(left) },
        spec.input.as_ref().map(json::input_text).unwrap_or_default(),
    ]
}

fn job_style(job: &v1::Job) -> Style {
    match job.state() {
        JobState::Failed => Style::new().fg(Color::Red),
        JobState::Succeeded => Style::new().fg(Color::Green),
        JobState::Cancelled | JobState::Cancelling | JobState::Paused => Style::new().fg(Color::Yellow),
        // It is to go on and doesn't.
        state if wait::waits(state) && !job.reason.is_empty() => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    }
}

/// What there is to say of the selected row beyond its cells.
fn detail(top: &Top, nodes: &[&v1::NodeStatus], jobs: &[&v1::Job]) -> String {
    let said = |text: &str| if text.is_empty() { String::new() } else { format!("  {}", human::cut(text, 400)) };
    match top.focus {
        Table::Nodes => nodes.get(top.selected(Table::Nodes)).map_or_else(String::new, |node| {
            let cpu = node.capacity.as_ref().map(|capacity| capacity.cpu.clone()).unwrap_or_default();
            format!("{} at {}  {}{}{}", node.node_id, node.address, node.version, said(&cpu), said(&node.reason))
        }),
        Table::Jobs => jobs.get(top.selected(Table::Jobs)).map_or_else(String::new, |job| {
            let spec = job.spec.clone().unwrap_or_default();
            let input = spec.input.as_ref().map(json::input_text).unwrap_or_default();
            let output = spec.output.as_ref().map(json::object).unwrap_or_default();
            format!("{}  {input} → {output}{}", job.job_id, said(&job.reason))
        }),
    }
}

fn keys(top: &Top) -> String {
    let (order, other) = match top.focus {
        Table::Nodes => (
            match top.node_order {
                NodeOrder::Name => "nodes by name",
                NodeOrder::Busy => "nodes by work",
                NodeOrder::Heat => "nodes by heat",
                NodeOrder::Memory => "nodes by memory",
            },
            "jobs",
        ),
        Table::Jobs => (
            match top.job_order {
                JobOrder::Newest => "newest jobs first",
                JobOrder::Rate => "fastest jobs first",
                JobOrder::Left => "soonest jobs first",
            },
            "nodes",
        ),
    };
    format!("q quit  p pause  s sort: {order}  ↑↓ move  Tab {other}  ? help")
}

#[cfg(test)]
mod tests;
