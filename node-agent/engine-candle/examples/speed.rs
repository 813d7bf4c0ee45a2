//! Where one model stands on this machine: `cargo run --release --example speed -- MODEL_FOLDER [THREADS [QUESTION]]`.
//!
//! Prints texts and tokens per second. The benches compare with peers; this is for a quick look while changing the engine.
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use ingle_engine::{
    Class, EmbedRequest, Engine, GenerateRequest, LoadOptions, Message, Model, Output, Prompt, Request, RequestId,
    Resume, Sampling, Step, Task,
};
use ingle_engine_candle::CandleEngine;

const WORDS: [&str; 16] = [
    "the", "contract", "of", "a", "winter", "evening", "was", "signed", "beside", "hearth", "and", "paper", "kept",
    "warm", "in", "boxes",
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().ok_or("MODEL_FOLDER is missing")?);
    let threads = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let question = arguments.next().unwrap_or_else(|| "What is the capital of France?".into());
    let engine = CandleEngine::new(threads);
    let begun = Instant::now();
    let mut model = engine.load(&LoadOptions { dir, threads, context: 4096, slots: 8 })?;
    println!("{:?}\nloaded in {:.2} s", model.card(), begun.elapsed().as_secs_f64());
    match model.card().task {
        Task::Embed => embed(model.as_mut()),
        _ => generate(model.as_mut(), question),
    }
}

fn run(model: &mut dyn Model, requests: Vec<Request>) -> Result<(Vec<Output>, f64), Box<dyn Error>> {
    for (id, request) in (0..).zip(requests) {
        model.join(RequestId(id), Class::Batch, request)?;
    }
    let (mut out, mut steps, mut longest) = (Vec::new(), 0, 0.0f64);
    let begun = Instant::now();
    loop {
        let step = Instant::now();
        let more = model.step(&mut out)?;
        longest = longest.max(step.elapsed().as_secs_f64());
        steps += 1;
        if more == Step::Idle {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!("  {steps} steps, {:.1} ms on average, {:.1} ms at most", seconds * 1e3 / f64::from(steps), longest * 1e3);
    Ok((out, seconds))
}

fn embed(model: &mut dyn Model) -> Result<(), Box<dyn Error>> {
    // 10 to 256 tokens with special ones, about 100 on average, in a fixed order that isn't sorted.
    let length = |index: usize| 8 + (index * 7919) % 247 * ((index * 31) % 97) / 118;
    let text = |index: usize| (0..length(index)).map(|at| WORDS[(index + at * 5) % 16]).collect::<Vec<_>>().join(" ");
    let ask = |texts: Vec<String>| {
        let texts = texts.into_iter().map(Into::into).collect();
        vec![Request::Embed(EmbedRequest { texts, normalise: true })]
    };
    run(model, ask((0..32).map(text).collect()))?;
    let (out, seconds) = run(model, ask((0..256).map(text).collect()))?;
    let tokens: u32 = out.iter().map(|o| if let Output::Embedding { tokens, .. } = o { *tokens } else { 0 }).sum();
    println!("256 texts, {tokens} tokens: {:.1} texts/s, {:.0} tokens/s", 256.0 / seconds, f64::from(tokens) / seconds);
    let mut times = Vec::new();
    for index in 0..20 {
        times.push(run(model, ask(vec![format!("where is the {} kept?", WORDS[index % 16])]))?.1 * 1e3);
    }
    times.sort_by(f64::total_cmp);
    println!("short query: {:.2} ms, median of {}", times[times.len() / 2], times.len());
    Ok(())
}

fn generate(model: &mut dyn Model, question: String) -> Result<(), Box<dyn Error>> {
    let ask = |prompt: Prompt, max_tokens: u32| {
        Request::Generate(GenerateRequest {
            prompt,
            resume: Resume::default(),
            sampling: Sampling::default(),
            max_tokens,
            stop: vec![],
            logprobs: 0,
        })
    };
    let messages = Prompt::Messages(vec![Message { role: "user".into(), content: question }]);
    let (out, _) = run(model, vec![ask(messages, 48)])?;
    let mut text = String::new();
    for output in &out {
        match output {
            Output::PromptTokens { ids, .. } => println!("prompt {ids:?}"),
            Output::Token { text: piece, .. } => text.push_str(piece),
            Output::Done { text: piece, finish, output_tokens, timings, .. } => {
                text.push_str(piece);
                let rate = f64::from(output_tokens.saturating_sub(1)) / timings.decode.as_secs_f64();
                println!("{text:?} {finish:?}\ndecode: {rate:.1} tok/s");
            }
            _ => {}
        }
    }
    let long = Prompt::Tokens((0..512).map(|at| 1000 + at * 7).collect());
    let (_, seconds) = run(model, vec![ask(long, 1)])?;
    println!("prefill of 512: {:.1} tok/s", 512.0 / seconds);
    Ok(())
}
