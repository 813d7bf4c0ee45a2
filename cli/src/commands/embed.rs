//! `ingle embed`: texts to vectors at once.

use clap::Args;
use ingle_proto::v1;
use serde_json::{Value, json};

use super::patience::{PutOff, waited};
use crate::client::Client;
use crate::exit::Failure;
use crate::out::{Out, note};
use crate::{human, input, json};

/// Most texts in one call; larger inputs are sent as several.
const TEXTS_PER_CALL: usize = 256;
/// Most bytes in one call.
const BYTES_PER_CALL: usize = 1 << 20;
/// How many numbers of a vector a person is shown.
const SHOWN: usize = 4;

const EXAMPLES: &str = "\
Examples:
  ingle embed 'good morning' 'guten Morgen'
  ingle embed --json 'good morning' | jq '.embeddings[0].vector | length'
  ingle embed --json - < sentences.txt > vectors.jsonl     # a line per text";

/// Turn texts into vectors at once
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct EmbedArgs {
    /// Texts; - reads one per line of standard input
    #[arg(required = true, value_name = "TEXT|-")]
    texts: Vec<String>,
    /// Name of a model; needed only where several would do
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    model: String,
    /// Refuse texts that are longer than the model's limit instead of cutting them
    #[arg(long)]
    fail_on_truncation: bool,
}

pub(crate) async fn run(client: &Client, args: EmbedArgs) -> Result<(), Failure> {
    let from_stdin = args.texts == ["-"];
    let texts = if from_stdin { input::lines(std::io::stdin())? } else { args.texts };
    let mut inference = client.inference().await?;
    let out = client.out;
    let mut document = json!({ "embeddings": [] });
    let (mut rows, mut cut) = (Vec::new(), 0usize);
    for call in calls(&texts)? {
        let mut put_off = PutOff::new(client);
        let answer = loop {
            let request = v1::EmbedRequest {
                model: args.model.clone(),
                texts: call.to_vec(),
                fail_on_truncation: args.fail_on_truncation,
            };
            let answer = client.long_call(inference.embed(client.long_request(request)));
            match waited(client, v1::JobKind::Embed, &args.model, answer).await {
                Ok(answer) => break answer,
                Err(failure) => {
                    if !put_off.again(client, &failure).await {
                        return Err(failure);
                    }
                }
            }
        };
        cut += answer.embeddings.iter().filter(|e| e.truncated).count();
        for (text, embedding) in call.iter().zip(&answer.embeddings) {
            match (out.json, from_stdin) {
                (true, true) => out.json_line(&vector(text, embedding))?,
                (true, false) => push(&mut document, vector(text, embedding)),
                (false, _) => rows.push(row(out, text, embedding)),
            }
        }
        document["model"] = json!(answer.model.as_ref().map(json::model_ref));
        document["usage"] = json!(answer.usage.as_ref().map(json::usage));
        document["timings"] = json!(answer.timings.as_ref().map(json::timings));
    }
    match (out.json, from_stdin) {
        (true, true) => {}
        (true, false) => out.json(&document)?,
        (false, _) => out.table(&["TEXT", "TOKENS", "DIMENSIONS", "VECTOR"], rows)?,
    }
    if cut > 0 {
        note(out, format!("{cut} texts were longer than the model's limit and were cut"));
    }
    Ok(())
}

/// Splits texts into calls within the bounds of one.
fn calls(texts: &[String]) -> Result<Vec<&[String]>, Failure> {
    let mut calls = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, text) in texts.iter().enumerate() {
        if text.len() > BYTES_PER_CALL {
            let size = human::bytes(text.len() as u64);
            return Err(Failure::usage(format!(
                "text {} has {size}; at most 1 MiB can be embedded at once",
                index + 1
            ))
            .hint("put it into a file on an export: `ingle submit embed` splits documents into passages"));
        }
        if index > start && (index - start == TEXTS_PER_CALL || bytes + text.len() > BYTES_PER_CALL) {
            calls.push(&texts[start..index]);
            (start, bytes) = (index, 0);
        }
        bytes += text.len();
    }
    calls.push(&texts[start..]);
    Ok(calls)
}

fn push(document: &mut Value, vector: Value) {
    if let Some(list) = document["embeddings"].as_array_mut() {
        list.push(vector);
    }
}

fn vector(text: &str, embedding: &v1::Embedding) -> Value {
    json!({ "text": text, "tokens": embedding.tokens, "truncated": embedding.truncated, "vector": embedding.vector })
}

fn row(out: Out, text: &str, embedding: &v1::Embedding) -> Vec<String> {
    let mut shown: Vec<String> = embedding.vector.iter().take(SHOWN).map(|v| format!("{v:+.4}")).collect();
    if embedding.vector.len() > SHOWN {
        shown.push("…".into());
    }
    vec![
        human::cut(text, if out.terminal { 40 } else { 80 }),
        embedding.tokens.to_string(),
        embedding.vector.len().to_string(),
        shown.join(" "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_every_text_in_order_and_stay_within_bounds() {
        let texts: Vec<String> = (0..1000).map(|i| "x".repeat(i * 17 % 9000)).collect();
        let calls = calls(&texts).expect("each fits");
        assert_eq!(calls.concat(), texts);
        for call in calls {
            assert!(!call.is_empty() && call.len() <= TEXTS_PER_CALL);
            assert!(call.iter().map(String::len).sum::<usize>() <= BYTES_PER_CALL);
        }
        assert!(super::calls(&["x".repeat(BYTES_PER_CALL + 1)]).is_err());
    }
}
