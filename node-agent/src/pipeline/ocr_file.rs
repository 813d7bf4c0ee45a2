//! The two files of a document that was read: its text, and its pages with lines and places as JSON (`docs/ocr-json.md`).

use std::io::{self, Write};

use ingle_proto::v1::{self, PageSource};
use serde::Serialize;

/// Version of the JSON; fields may be added within one.
const SCHEMA: u32 = 1;

/// Runs of missing pages that a document's entry names.
const RUNS_SHOWN: usize = 12;

/// What stands at the top of the JSON file.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Head<'a> {
    schema: u32,
    path: &'a str,
    model: &'a str,
    model_digest: &'a str,
    page_count: u32,
}

#[derive(Serialize)]
struct Page<'a> {
    number: u32,
    width: u32,
    height: u32,
    dpi: Option<u32>,
    turn: u32,
    source: Option<&'static str>,
    lines: Vec<Line<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Error<'a>>,
}

#[derive(Serialize)]
struct Line<'a> {
    text: &'a str,
    confidence: f64,
    r#box: Vec<[f64; 2]>,
    block: u32,
}

#[derive(Serialize)]
struct Error<'a> {
    code: &'a str,
    reason: &'a str,
}

/// Writes both files page by page.
pub(super) struct OcrFile<J: Write, T: Write> {
    json: J,
    text: T,
    written: u32,
    text_bytes: u64,
    /// Pages that could not be read, as runs from first to last, and the first of them.
    failed: u32,
    missing: Vec<(u32, u32)>,
    first_failed: Option<(u32, String, String)>,
}

impl<'a> Head<'a> {
    pub(super) fn new(path: &'a str, model: &'a str, model_digest: &'a str, page_count: u32) -> Self {
        Self { schema: SCHEMA, path, model, model_digest, page_count }
    }
}

impl<J: Write, T: Write> OcrFile<J, T> {
    /// Writes what stands before the first page.
    pub(super) fn begin(mut json: J, text: T, head: &Head<'_>) -> io::Result<Self> {
        let head = serde_json::to_string(head)?;
        // The closing brace waits until the pages are there.
        write!(json, "{},\"pages\":[", head.strip_suffix('}').unwrap_or(&head))?;
        Ok(Self { json, text, written: 0, text_bytes: 0, failed: 0, missing: Vec::new(), first_failed: None })
    }

    /// Adds the next page: a line of JSON; in the text pages are parted by form feeds.
    pub(super) fn page<'p>(&mut self, page: &'p v1::OcrPage) -> io::Result<()> {
        let error =
            (page.source() == PageSource::Unspecified).then(|| Error { code: &page.code, reason: &page.reason });
        if error.is_some() {
            self.failed += 1;
            let more = self.missing.len() <= RUNS_SHOWN;
            match self.missing.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(page.number) => *last = page.number,
                // One more than is shown tells that there are more.
                _ if more => self.missing.push((page.number, page.number)),
                _ => {}
            }
            self.first_failed.get_or_insert_with(|| (page.number, page.code.clone(), page.reason.clone()));
        }
        let line = |line: &'p v1::OcrLine| Line {
            text: &line.text,
            confidence: rounded(line.confidence, 1e3),
            r#box: line.r#box.chunks_exact(2).map(|at| [rounded(at[0], 10.0), rounded(at[1], 10.0)]).collect(),
            block: line.block,
        };
        let json = Page {
            number: page.number,
            width: page.width,
            height: page.height,
            dpi: (page.dpi > 0).then_some(page.dpi),
            turn: page.turn,
            source: match page.source() {
                PageSource::Ocr => Some("ocr"),
                PageSource::Text => Some("text"),
                PageSource::Unspecified => None,
            },
            lines: page.lines.iter().map(line).collect(),
            error,
        };
        self.json.write_all(if self.written == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut self.json, &json)?;
        let mut text = plain(page);
        if self.written > 0 {
            text.insert(0, '\x0c');
        }
        self.text.write_all(text.as_bytes())?;
        self.text_bytes += text.len() as u64;
        self.written += 1;
        Ok(())
    }

    /// Pages written, and how many of them could not be read.
    pub(super) fn pages(&self) -> (u32, u32) {
        (self.written, self.failed)
    }

    /// Code and words for what could not be read, if anything.
    pub(super) fn shortcoming(&self) -> Option<(String, String)> {
        let (number, code, reason) = self.first_failed.as_ref()?;
        let words = match (self.failed, self.written) {
            (1, 1) => reason.clone(),
            (failed, written) if failed == written => {
                format!("none of its {written} pages could be read; page {number}: {reason}")
            }
            (1, written) => format!("1 of its {written} pages could not be read; page {number}: {reason}"),
            (failed, written) => {
                let missing = self.missing();
                format!("{failed} of its {written} pages could not be read ({missing}); page {number}: {reason}")
            }
        };
        Some((code.clone(), words))
    }

    /// Which pages could not be read, the first runs of them.
    fn missing(&self) -> String {
        let run = |(first, last): &(u32, u32)| match first == last {
            true => first.to_string(),
            false => format!("{first}–{last}"),
        };
        let shown: Vec<String> = self.missing.iter().take(RUNS_SHOWN).map(run).collect();
        let more = if self.missing.len() > RUNS_SHOWN { " …" } else { "" };
        format!("{}{more}", shown.join(", "))
    }

    /// Writes what stands after the last page and hands both back. A text is never without a byte.
    pub(super) fn finish(mut self) -> io::Result<(J, T)> {
        self.json.write_all(b"\n]}\n")?;
        if self.text_bytes == 0 {
            self.text.write_all(b"\n")?;
        }
        self.json.flush()?;
        self.text.flush()?;
        Ok((self.json, self.text))
    }
}

/// A newline after each line, an empty line between blocks.
pub(super) fn plain(page: &v1::OcrPage) -> String {
    let mut text = String::new();
    for (index, line) in page.lines.iter().enumerate() {
        if index > 0 && page.lines[index - 1].block != line.block {
            text.push('\n');
        }
        text.push_str(&line.text);
        text.push('\n');
    }
    text
}

/// JSON has no NaN, and nobody needs a millionth of a pixel.
fn rounded(value: f32, steps: f64) -> f64 {
    let value = (f64::from(value) * steps).round() / steps;
    if value.is_finite() { value } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(number: u32, texts: &[(&str, u32)]) -> v1::OcrPage {
        let line = |(text, block): &(&str, u32)| v1::OcrLine {
            text: (*text).into(),
            confidence: 0.987_65,
            r#box: vec![0.04, 1.0, 9.96, 1.0, 10.0, 2.0, 0.0, f32::NAN],
            block: *block,
        };
        v1::OcrPage {
            number,
            width: 100,
            height: 50,
            source: PageSource::Ocr.into(),
            lines: texts.iter().map(line).collect(),
            ..Default::default()
        }
    }

    fn written(pages: &[v1::OcrPage]) -> (serde_json::Value, String, Option<(String, String)>) {
        let head = Head::new("a \"b\".pdf", "m", "00ff", pages.len() as u32);
        let mut file = OcrFile::begin(Vec::new(), Vec::new(), &head).unwrap();
        for page in pages {
            file.page(page).unwrap();
        }
        let shortcoming = file.shortcoming();
        let (json, text) = file.finish().unwrap();
        assert_eq!(json.last(), Some(&b'\n'));
        (serde_json::from_slice(&json).expect("JSON"), String::from_utf8(text).unwrap(), shortcoming)
    }

    #[test]
    fn pages_become_text_and_json() {
        let failed = v1::OcrPage { number: 2, code: "TOO_LARGE".into(), reason: "wide".into(), ..Default::default() };
        let (json, text, short) = written(&[page(1, &[("one", 0), ("two", 1)]), failed, page(3, &[("three", 0)])]);
        assert_eq!(text, "one\n\ntwo\n\x0c\x0cthree\n");
        assert_eq!(json["schema"], 1);
        assert_eq!((json["path"].as_str(), json["page_count"].as_u64()), (Some("a \"b\".pdf"), Some(3)));
        let line = &json["pages"][0]["lines"][0];
        assert_eq!(line["box"], serde_json::json!([[0.0, 1.0], [10.0, 1.0], [10.0, 2.0], [0.0, 0.0]]));
        assert_eq!((line["confidence"].as_f64(), line["block"].as_u64()), (Some(0.988), Some(0)));
        assert!(json["pages"][0].get("error").is_none() && json["pages"][0]["dpi"].is_null());
        assert_eq!(json["pages"][1]["error"]["code"], "TOO_LARGE");
        assert!(json["pages"][1]["source"].is_null());
        let (code, words) = short.expect("a page failed");
        assert_eq!((code.as_str(), words.as_str()), ("TOO_LARGE", "1 of its 3 pages could not be read; page 2: wide"));
    }

    #[test]
    fn a_blank_document_is_a_line_without_words() {
        let (json, text, short) = written(&[page(1, &[])]);
        assert_eq!((text.as_str(), short), ("\n", None));
        assert_eq!(json["pages"][0]["lines"], serde_json::json!([]));
    }

    #[test]
    fn missing_pages_are_named_in_runs() {
        let failed = |number| v1::OcrPage { number, code: "X".into(), reason: "why".into(), ..Default::default() };
        let pages: Vec<_> = (1..=9).map(|n| if n == 1 || n == 6 { page(n, &[]) } else { failed(n) }).collect();
        let words = written(&pages).2.expect("some failed").1;
        assert_eq!(words, "7 of its 9 pages could not be read (2–5, 7–9); page 2: why");
        let pages: Vec<_> = (1..=60).map(|n| if n % 2 == 1 { page(n, &[]) } else { failed(n) }).collect();
        let words = written(&pages).2.expect("some failed").1;
        assert!(words.contains("(2, 4, 6") && words.contains("24 …)"), "{words}");
    }

    #[test]
    fn nothing_read_is_said_so() {
        let failed = |number| v1::OcrPage { number, code: "X".into(), reason: "why".into(), ..Default::default() };
        assert_eq!(written(&[failed(1)]).2.expect("it failed").1, "why");
        let words = written(&[failed(1), failed(2)]).2.expect("both failed").1;
        assert_eq!(words, "none of its 2 pages could be read; page 1: why");
    }
}
