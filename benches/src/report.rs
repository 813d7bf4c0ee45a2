//! Rows of a run: medians, ratios, a table, the JSON file, and the dated folder.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Serialize;

use crate::machine::Machine;

/// Which way is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// Rates.
    Higher,
    /// Bytes.
    Lower,
    /// Times of which the value told is what ours takes beyond the peer's.
    Added,
}

/// What one measure is compared with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Peer {
    /// Its name and version, and its samples.
    Measured(String, Vec<f64>),
    /// Its name, and why there is no number.
    Missing(String, String),
}

/// One measure, before it is condensed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) ours: Vec<f64>,
    pub(crate) peer: Peer,
}

/// One line of the JSON file. `ratio` above 1 is always better for us.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    measure: String,
    value: f64,
    unit: String,
    peer: String,
    peer_value: Option<f64>,
    ratio: Option<f64>,
    samples: usize,
}

impl Measure {
    /// Medians and their ratio.
    pub(crate) fn row(&self) -> Row {
        let ours = median(&self.ours);
        let (peer, peer_value) = match &self.peer {
            Peer::Measured(name, samples) => (name.clone(), Some(median(samples))),
            Peer::Missing(name, why) => (format!("{name}: missing ({why})"), None),
        };
        let ratio = peer_value.map(|peer| match self.better {
            Better::Higher => ours / peer,
            Better::Lower | Better::Added => peer / ours,
        });
        let value = match self.better {
            Better::Higher | Better::Lower => ours,
            Better::Added => ours - peer_value.unwrap_or(0.0),
        };
        // JSON has no infinities: a ratio that isn't a number is none.
        let ratio = ratio.filter(|ratio| ratio.is_finite()).map(rounded);
        Row {
            measure: self.name.to_owned(),
            value: rounded(value),
            unit: self.unit.to_owned(),
            peer,
            peer_value: peer_value.map(rounded),
            ratio,
            samples: self.ours.len(),
        }
    }
}

impl Measure {
    /// One line for a person who waits.
    pub(crate) fn line(&self) -> String {
        let row = self.row();
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        format!(
            "{} {}, the peer {}, ratio {}",
            number(Some(row.value)),
            row.unit,
            number(row.peer_value),
            number(row.ratio)
        )
    }
}

/// The middle value, or the mean of the two in the middle; 0 of nothing.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => f64::midpoint(sorted[even / 2 - 1], sorted[even / 2]),
    }
}

/// Four digits say more than was measured.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[derive(Serialize)]
struct File<'a> {
    name: &'a str,
    machine: &'a Machine,
    commit: &'a str,
    rows: &'a [Row],
}

/// Everything of one run.
pub(crate) struct Report {
    pub(crate) name: &'static str,
    pub(crate) machine: Machine,
    pub(crate) commit: String,
    pub(crate) measures: Vec<Measure>,
    /// What a reader must know: peers that were missing, agreement of results.
    pub(crate) notes: Vec<String>,
}

impl Report {
    fn rows(&self) -> Vec<Row> {
        self.measures.iter().map(Measure::row).collect()
    }

    /// For a person.
    pub(crate) fn table(&self) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"));
        let mut lines = vec![["measure", "value", "unit", "peer's", "ratio", "n", "peer"].map(str::to_owned)];
        for row in self.rows() {
            let (value, peer_value, ratio) = (number(Some(row.value)), number(row.peer_value), number(row.ratio));
            lines.push([row.measure, value, row.unit, peer_value, ratio, row.samples.to_string(), row.peer]);
        }
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            for (column, cell) in line.iter().enumerate() {
                let gap = widths[column] - cell.chars().count();
                let (left, right) = if matches!(column, 1 | 3 | 4 | 5) { (gap, 0) } else { (0, gap) };
                let _ = write!(text, "{}{cell}{}  ", " ".repeat(left), " ".repeat(right));
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    /// The file that other programs read.
    ///
    /// # Errors
    /// If a number can't be written as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        let rows = self.rows();
        let file = File { name: self.name, machine: &self.machine, commit: &self.commit, rows: &rows };
        Ok(serde_json::to_string_pretty(&file)? + "\n")
    }

    /// Every sample, so that a reader can judge the spread.
    fn csv(&self) -> String {
        let mut text = String::from("measure,who,sample,value\n");
        for measure in &self.measures {
            let peer = match &measure.peer {
                Peer::Measured(_, samples) => samples.as_slice(),
                Peer::Missing(..) => &[],
            };
            for (who, samples) in [("ours", measure.ours.as_slice()), ("peer", peer)] {
                for (index, value) in samples.iter().enumerate() {
                    let _ = writeln!(text, "{},{who},{index},{value}", measure.name);
                }
            }
        }
        text
    }

    fn notes(&self) -> String {
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        format!(
            "# {} at {}\n\n{}\n```text\n{}```\n\n{notes}",
            self.name,
            self.commit,
            self.machine.notes(),
            self.table()
        )
    }

    /// Writes `latest/NAME.json`, and with `keep` a dated folder too; the folder written.
    ///
    /// # Errors
    /// What the file system said.
    pub(crate) fn write(&self, runs: &Path, keep: bool) -> anyhow::Result<PathBuf> {
        let latest = runs.join("latest");
        self.write_into(&latest)?;
        if !keep {
            return Ok(latest);
        }
        let folder = runs.join(format!("{}-{}", stamp(SystemTime::now()), self.name));
        self.write_into(&folder)?;
        Ok(folder)
    }

    fn write_into(&self, folder: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        std::fs::write(folder.join(format!("{}.json", self.name)), self.json()?)?;
        std::fs::write(folder.join(format!("{}-samples.csv", self.name)), self.csv())?;
        std::fs::write(folder.join(format!("{}.md", self.name)), self.notes())?;
        Ok(())
    }
}

/// `2026-11-21-0405` in UTC.
fn stamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    let (mut year, mut left) = (1970, days);
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}-{:02}{:02}", left + 1, minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn measure(better: Better, ours: &[f64], peer: Peer) -> Row {
        Measure { name: "a.b", unit: "x", better, ours: ours.to_vec(), peer }.row()
    }

    #[test]
    fn a_ratio_above_one_is_better_for_us() {
        let peer = || Peer::Measured("p".into(), vec![2.0]);
        assert_eq!(measure(Better::Higher, &[1.0, 4.0, 9.0], peer()).ratio, Some(2.0));
        let added = measure(Better::Added, &[1.0, 4.0, 9.0], peer());
        assert_eq!((added.value, added.peer_value, added.ratio), (2.0, Some(2.0), Some(0.5)));
        assert_eq!(measure(Better::Added, &[0.0], peer()).ratio, None, "no infinities in JSON");
    }

    #[test]
    fn a_missing_peer_is_said_not_guessed() {
        let row = measure(Better::Higher, &[3.0], Peer::Missing("llama.cpp".into(), "set LLAMA_CPP_BIN".into()));
        assert_eq!((row.peer_value, row.ratio), (None, None));
        assert!(row.peer.contains("missing") && row.peer.contains("LLAMA_CPP_BIN"), "{}", row.peer);
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn stamps_are_dates() {
        let at = |seconds: u64| stamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01-0000");
        assert_eq!(at(951_782_400), "2000-02-29-0000");
        assert_eq!(at(1_795_235_100), "2026-11-21-0425");
        assert_eq!(at(1_798_761_599), "2026-12-31-2359");
    }

    #[test]
    fn files_are_written_whole() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = Report {
            name: "main",
            machine: Machine::default(),
            commit: "abc".into(),
            measures: vec![Measure {
                name: "a.b",
                unit: "x/s",
                better: Better::Higher,
                ours: vec![1.0, 2.0],
                peer: Peer::Measured("p".into(), vec![1.0]),
            }],
            notes: vec!["a note".into()],
        };
        let kept = report.write(folder.path(), true).expect("room");
        assert!(kept.file_name().is_some_and(|name| name.to_string_lossy().ends_with("-main")));
        let text = std::fs::read_to_string(folder.path().join("latest/main.json")).expect("written");
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["rows"][0]["ratio"], 1.5);
        assert_eq!(json["rows"][0]["samples"], 2);
        assert!(json["machine"].is_object() && json["commit"] == "abc" && json["name"] == "main");
        let csv = std::fs::read_to_string(kept.join("main-samples.csv")).expect("written");
        assert_eq!(csv.lines().count(), 4);
    }
}
