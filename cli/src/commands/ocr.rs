//! `ingle ocr`: the text of pictures and PDFs, at once.

use std::io::Read;
use std::path::Path;

use clap::Args;
use ingle_proto::CHUNK_BYTES;
use ingle_proto::job::OCR_CALL_BYTES_MAX;
use ingle_proto::v1::{self, PageSource};
use serde_json::{Value, json};

use super::patience::{PutOff, waited};
use crate::client::Client;
use crate::exit::Failure;
use crate::out::note;
use crate::{human, json};

const EXAMPLES: &str = "\
A call reads at most 100 pages and 64 MiB; `ingle submit ocr` reads whole folders and long documents.

Examples:
  ingle ocr scan.pdf
  ingle ocr receipt.jpg letter.png
  ingle ocr --json invoice.tif | jq -r '.pages[].lines[].text'
  scanimage --format=png | ingle ocr -";

/// Read the text of pictures and PDFs at once
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct OcrArgs {
    /// Files of this machine: PNG, JPEG, WebP, GIF, BMP, TIFF or PDF; - reads one from standard input
    #[arg(required = true, value_name = "FILE|-")]
    files: Vec<String>,
    /// Name of a model; needed only where several would do
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    model: String,
}

pub(crate) async fn run(client: &Client, args: OcrArgs) -> Result<(), Failure> {
    let out = client.out;
    let many = args.files.len() > 1;
    let mut inference = client.inference().await?;
    for (index, file) in args.files.iter().enumerate() {
        let bytes = read(file)?;
        let mut put_off = PutOff::new(client);
        let answer = loop {
            let request = client.long_request(tokio_stream::iter(pieces(&args.model, &bytes)));
            match waited(client, v1::JobKind::Ocr, &args.model, client.long_call(inference.ocr(request))).await {
                Ok(answer) => break answer,
                Err(failure) => {
                    let failure = named(file, failure);
                    if !put_off.again(client, &failure).await {
                        return Err(failure);
                    }
                }
            }
        };
        match (out.json, many) {
            (true, true) => out.json_line(&document(file, &answer))?,
            (true, false) => out.json(&document(file, &answer))?,
            (false, _) => {
                if many {
                    let blank = if index == 0 { "" } else { "\n" };
                    out.line(format!("{blank}==> {file} <=="))?;
                }
                let end = if answer.text.is_empty() || answer.text.ends_with('\n') { "" } else { "\n" };
                out.text(&format!("{}{end}", answer.text))?;
            }
        }
        for page in answer.pages.iter().filter(|page| page.source() == PageSource::Unspecified) {
            note(out, format!("{file}: page {} could not be read: {}", page.number, page.reason));
        }
    }
    Ok(())
}

/// A file's bytes, within the bounds of a call.
fn read(file: &str) -> Result<Vec<u8>, Failure> {
    let fail = |why: String| Failure::usage(format!("{file}: {why}"));
    let mut bytes = Vec::new();
    let most = OCR_CALL_BYTES_MAX as u64;
    let read = if file == "-" {
        std::io::stdin().take(most + 1).read_to_end(&mut bytes)
    } else {
        let metadata = std::fs::metadata(Path::new(file)).map_err(|error| fail(error.to_string()))?;
        if !metadata.is_file() {
            return Err(fail("is not a file".to_owned()).hint("`ingle submit ocr` reads the folders of an export"));
        }
        std::fs::File::open(file).and_then(|opened| opened.take(most + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| fail(error.to_string()))?;
    if bytes.is_empty() {
        return Err(fail("is empty".to_owned()));
    }
    if bytes.len() as u64 > most {
        return Err(fail(format!("is larger than {}", human::bytes(most)))
            .hint("put it on an export and read it with `ingle submit ocr`"));
    }
    Ok(bytes)
}

fn pieces(model: &str, bytes: &[u8]) -> Vec<v1::OcrRequest> {
    let mut pieces: Vec<v1::OcrRequest> = bytes
        .chunks(CHUNK_BYTES)
        .map(|chunk| v1::OcrRequest { data: chunk.to_vec().into(), ..Default::default() })
        .collect();
    if let Some(first) = pieces.first_mut() {
        model.clone_into(&mut first.model);
    }
    pieces
}

fn named(file: &str, mut failure: Failure) -> Failure {
    failure.message = format!("{file}: {}", failure.message);
    failure
}

fn document(file: &str, answer: &v1::OcrResponse) -> Value {
    json!({
        "file": file,
        "text": answer.text,
        "pages": answer.pages.iter().map(json::page).collect::<Vec<_>>(),
        "model": answer.model.as_ref().map(json::model_ref),
        "timings": answer.timings.as_ref().map(json::timings),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn pieces_are_the_file_and_the_first_names_the_model() {
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 5).map(|i| i as u8).collect();
        let pieces = pieces("m", &bytes);
        assert_eq!(pieces.iter().map(|p| p.model.as_str()).collect::<Vec<_>>(), ["m", "", ""]);
        assert!(pieces.iter().all(|piece| piece.data.len() <= CHUNK_BYTES));
        assert_eq!(pieces.iter().flat_map(|p| p.data.to_vec()).collect::<Vec<_>>(), bytes);
    }

    #[test]
    fn what_can_not_be_read_is_said_here() {
        let dir = tempfile::tempdir().expect("a directory");
        let empty = dir.path().join("empty.png");
        std::fs::write(&empty, b"").expect("a file");
        for (file, word) in [
            (dir.path().display().to_string(), "not a file"),
            (empty.display().to_string(), "empty"),
            ("/nowhere/at/all.pdf".to_owned(), "/nowhere/at/all.pdf"),
        ] {
            let failure = read(&file).expect_err(word);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(word), "{}", failure.message);
        }
    }
}
