//! Checks for models that generate. Greedy unless said otherwise, so that runs are comparable.

use super::{Subject, drain, join, owner, refusal, step};
use crate::{
    Class, EngineError, Finish, GenerateRequest, Message, Model, Output, Prompt, Request, RequestId, Resume, Sampling,
    Step, Task,
};

const TOKENS: u32 = 24;
const QUESTION: &str = "Why does a kettle sing before it boils? Answer in a few words.";

/// All of them.
pub fn run(subject: &Subject) {
    card_is_plausible(subject);
    text_and_offsets_are_exact(subject);
    batch_equals_singles(subject);
    a_seed_repeats_itself(subject);
    a_resumed_stream_goes_on(subject);
    max_tokens_holds_across_a_resume(subject);
    a_stop_string_is_not_said(subject);
    bad_requests_are_refused(subject);
    leaving_frees_slot_and_memory(subject);
    interactive_goes_before_batch(subject);
}

/// A question in one message, greedy.
pub(super) fn request(content: &str, max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Prompt::Messages(vec![Message { role: "user".into(), content: content.into() }]),
        resume: Resume::default(),
        sampling: Sampling::default(),
        max_tokens,
        stop: vec![],
        logprobs: 0,
    }
}

/// What came of one request, with the checks that hold for every generation.
#[derive(Debug, Clone, PartialEq)]
struct Told {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
    /// (offset, text) of each token, then of Done.
    pieces: Vec<(u64, String)>,
    finish: Finish,
    text: String,
}

fn told(out: &[Output], id: u64, resume: &Resume) -> Told {
    let mut prompt = None;
    let mut tokens = Vec::new();
    let mut pieces = Vec::new();
    let mut end = None;
    for output in out.iter().filter(|output| owner(output) == RequestId(id)) {
        assert!(end.is_none(), "nothing comes after Done: {output:?}");
        match output {
            Output::PromptTokens { ids, .. } => {
                assert!(prompt.is_none() && tokens.is_empty(), "the prompt's tokens come first and once");
                prompt = Some(ids.clone());
            }
            Output::Token { index, token, text_offset, text, .. } => {
                assert!(prompt.is_some(), "the prompt's tokens come first");
                assert_eq!(*index as usize, resume.emitted.len() + tokens.len(), "indices are consecutive");
                tokens.push(*token);
                pieces.push((*text_offset, text.clone()));
            }
            Output::Done { finish, text, text_offset, prompt_tokens, output_tokens, .. } => {
                pieces.push((*text_offset, text.clone()));
                assert_eq!(*prompt_tokens as usize, prompt.as_ref().map_or(0, Vec::len));
                assert_eq!(*output_tokens as usize, resume.emitted.len() + tokens.len());
                end = Some(*finish);
            }
            other => panic!("unexpected {other:?}"),
        }
    }
    let mut text = String::new();
    for (offset, piece) in &pieces {
        assert_eq!(*offset, resume.text_offset + text.len() as u64, "offsets are contiguous: {pieces:?}");
        text.push_str(piece);
    }
    Told { prompt: prompt.expect("the prompt's tokens came"), tokens, pieces, finish: end.expect("Done came"), text }
}

fn tell(model: &mut dyn Model, request: GenerateRequest) -> Told {
    let resume = request.resume.clone();
    join(model, 1, Class::Batch, Request::Generate(request));
    told(&drain(model), 1, &resume)
}

fn card_is_plausible(subject: &Subject) {
    let card = subject.engine.inspect(subject.dir).unwrap_or_else(|error| panic!("inspect: {error}"));
    assert_eq!(card.task, Task::Generate);
    assert!(card.weight_bytes > 0 && card.context > 0 && card.kv_bytes_per_token > 0, "{card:?}");
    assert!(card.bytes_per_token > 0, "{card:?}");
}

fn text_and_offsets_are_exact(subject: &Subject) {
    let mut model = subject.load(1);
    let plain = tell(model.as_mut(), request(QUESTION, TOKENS));
    assert!(!plain.tokens.is_empty() && !plain.text.is_empty());
    // Asking for logprobs changes nothing else.
    join(
        model.as_mut(),
        1,
        Class::Batch,
        Request::Generate(GenerateRequest { logprobs: 3, ..request(QUESTION, TOKENS) }),
    );
    let out = drain(model.as_mut());
    assert_eq!(told(&out, 1, &Resume::default()), plain);
    for output in &out {
        if let Output::Token { token, logprobs, .. } = output {
            assert!(logprobs.len() >= 4, "the chosen token and three others");
            assert_eq!(logprobs[0].token, *token, "the chosen token is first");
            assert!(logprobs.iter().all(|entry| entry.logprob <= 0.0), "{logprobs:?}");
        }
    }
}

fn batch_equals_singles(subject: &Subject) {
    let questions = [QUESTION, "Name a colour.", "Count to five, please, and then stop."];
    let mut model = subject.load(3);
    let alone: Vec<Told> = questions.iter().map(|q| tell(model.as_mut(), request(q, TOKENS))).collect();
    for (id, question) in questions.iter().enumerate() {
        join(model.as_mut(), id as u64, Class::Batch, Request::Generate(request(question, TOKENS)));
    }
    let out = drain(model.as_mut());
    for (id, expected) in alone.iter().enumerate() {
        assert_eq!(&told(&out, id as u64, &Resume::default()), expected, "question {id} in the batch and alone");
    }
}

fn sampled(seed: u64) -> GenerateRequest {
    let sampling = Sampling { temperature: 1.0, seed, presence_penalty: 0.5, ..Sampling::default() };
    GenerateRequest { sampling, ..request(QUESTION, TOKENS) }
}

fn a_seed_repeats_itself(subject: &Subject) {
    let mut model = subject.load(1);
    let first = tell(model.as_mut(), sampled(7));
    assert_eq!(tell(model.as_mut(), sampled(7)), first, "same seed, same text");
    let others = (8..16).map(|seed| tell(model.as_mut(), sampled(seed)).tokens);
    assert!(others.into_iter().any(|tokens| tokens != first.tokens), "other seeds, other texts");
}

/// At a sample of token indices, for a greedy and a sampled stream, and with a stop string that never comes.
fn a_resumed_stream_goes_on(subject: &Subject) {
    let mut model = subject.load(1);
    for base in [request(QUESTION, TOKENS), GenerateRequest { stop: vec!["\u{1}never\u{1}".into()], ..sampled(3) }] {
        let whole = tell(model.as_mut(), base.clone());
        let count = whole.tokens.len();
        for cut in [0, 1, 2, count / 2, count - 1, count] {
            let said: usize = whole.pieces[..cut].iter().map(|(_, text)| text.len()).sum();
            // The last frame's text may have been lost: text goes on from the offset told, not from the tokens.
            for lost in [0, whole.pieces[..cut].last().map_or(0, |(_, text)| text.len())] {
                let at = said - lost;
                let resume = Resume { emitted: whole.tokens[..cut].to_vec(), text_offset: at as u64 };
                let prompt = Prompt::Tokens(whole.prompt.clone());
                let rest = tell(model.as_mut(), GenerateRequest { prompt, resume, ..base.clone() });
                assert_eq!(rest.prompt, whole.prompt);
                assert_eq!(rest.tokens, whole.tokens[cut..], "tokens after a cut at {cut}");
                assert_eq!(rest.text, whole.text[at..], "text after a cut at {cut}, offset {at}");
                assert_eq!(rest.finish, whole.finish);
            }
        }
    }
}

fn max_tokens_holds_across_a_resume(subject: &Subject) {
    let mut model = subject.load(1);
    let five = tell(model.as_mut(), request(QUESTION, 5));
    assert_eq!((five.tokens.len(), five.finish), (5, Finish::Length));
    let resume = Resume { emitted: five.tokens[..3].to_vec(), text_offset: 0 };
    let prompt = Prompt::Tokens(five.prompt.clone());
    let rest = tell(model.as_mut(), GenerateRequest { prompt, resume, ..request(QUESTION, 5) });
    assert_eq!((rest.tokens.len(), rest.finish), (2, Finish::Length), "the bound counts from the first token of all");
}

fn a_stop_string_is_not_said(subject: &Subject) {
    let mut model = subject.load(1);
    let whole = tell(model.as_mut(), request(QUESTION, TOKENS));
    let middle = whole.pieces.len() / 2;
    // From the middle of one token's text to the middle of a later one's.
    let ends: Vec<usize> = whole.pieces.iter().map(|(at, text)| *at as usize + text.len()).collect();
    let mut starts = whole.text.char_indices().map(|(at, _)| at).rev();
    let start = starts.find(|at| *at < ends[middle]).expect("there is text before the middle");
    let rest = whole.text[start..].chars();
    let stop: String = rest.take(3).collect();
    let expected = &whole.text[..whole.text.find(&stop).expect("it was taken from there")];
    let cut =
        tell(model.as_mut(), GenerateRequest { stop: vec![stop.clone(), "\u{2}".into()], ..request(QUESTION, TOKENS) });
    assert_eq!(cut.text, expected, "stopped before {stop:?}");
    assert_eq!(cut.finish, Finish::Stop);
    assert!(cut.tokens.len() <= whole.tokens.len());
}

fn bad_requests_are_refused(subject: &Subject) {
    let mut model = subject.load(1);
    let context = model.card().context.min(512) as usize;
    let long = "word ".repeat(2 * context);
    let mut refused = |request: GenerateRequest| match refusal(model.as_mut(), Request::Generate(request)) {
        EngineError::Input(text) => text,
        other => panic!("expected an input error, got {other}"),
    };
    let text = refused(request(&long, 4));
    assert!(text.contains(&context.to_string()), "both numbers are named: {text}");
    refused(request("", 4));
    refused(request("hi", 0));
    refused(GenerateRequest { prompt: Prompt::Tokens(vec![]), ..request("", 4) });
    refused(GenerateRequest { stop: vec![String::new()], ..request("hi", 4) });
    for sampling in [
        Sampling { temperature: f32::NAN, ..Sampling::default() },
        Sampling { temperature: 1e30, ..Sampling::default() },
        Sampling { top_p: 1.1, ..Sampling::default() },
        Sampling { logit_bias: vec![(0, 0.0); 2000], ..Sampling::default() },
    ] {
        refused(GenerateRequest { sampling, ..request("hi", 4) });
    }
    let embed = Request::Embed(crate::EmbedRequest { texts: vec!["hi".into()], normalise: true });
    assert!(matches!(refusal(model.as_mut(), embed), EngineError::Input(_)));
}

fn leaving_frees_slot_and_memory(subject: &Subject) {
    let mut model = subject.load(2);
    tell(model.as_mut(), request(QUESTION, 4));
    let before = model.memory_bytes();
    join(model.as_mut(), 1, Class::Batch, Request::Generate(request(QUESTION, TOKENS)));
    join(model.as_mut(), 2, Class::Batch, Request::Generate(request("Name a colour.", 4)));
    assert_eq!(model.free_slots(), 0);
    let full = refusal(model.as_mut(), Request::Generate(request("one more", 4)));
    assert!(matches!(full, EngineError::Full { slots: 2 }), "{full}");
    let mut out = Vec::new();
    while !out.iter().any(|output| matches!(output, Output::Token { id: RequestId(1), .. })) {
        step(model.as_mut(), &mut out);
    }
    assert!(model.memory_bytes() > before, "a stream in the making holds memory");
    model.leave(RequestId(1));
    out.clear();
    while step(model.as_mut(), &mut out) == Step::Busy {}
    assert!(out.iter().all(|output| owner(output) == RequestId(2)), "who left says nothing more");
    assert_eq!(model.free_slots(), 2);
    assert_eq!(model.memory_bytes(), before, "memory is given back");
}

fn interactive_goes_before_batch(subject: &Subject) {
    let mut model = subject.load(2);
    join(model.as_mut(), 1, Class::Batch, Request::Generate(request(QUESTION, TOKENS)));
    let mut out = Vec::new();
    step(model.as_mut(), &mut out);
    join(model.as_mut(), 2, Class::Interactive, Request::Generate(request("Name a colour.", 3)));
    out.clear();
    while !out.iter().any(|output| matches!(output, Output::Done { id: RequestId(2), .. })) {
        step(model.as_mut(), &mut out);
    }
    // The step that ended the person's request may have gone on with the batch.
    let waited = out.iter().take_while(|output| !matches!(output, Output::Done { id: RequestId(2), .. }));
    assert!(waited.map(owner).all(|id| id == RequestId(2)), "batch work was done while a person waited");
    while step(model.as_mut(), &mut out) == Step::Busy {}
    assert!(
        out.iter().any(|output| matches!(output, Output::Done { id: RequestId(1), .. })),
        "batch work goes on after"
    );
}
