//! `ingle chat`: one question, or a conversation, answered token by token.

use std::io::{BufRead as _, IsTerminal as _, Read as _, Write as _};
use std::time::Duration;

use clap::Args;
use ingle_daemon::backoff::Backoff;
use ingle_daemon::grpc::Channel;
use ingle_proto::v1::{self, content_part::Part, generate_response::Frame};
use tokio::sync::{mpsc, oneshot};
use v1::inference_client::InferenceClient;

use super::patience::{PutOff, waited};
use super::sampling::SamplingArgs;
use super::submit::text_or_file;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::json;
use crate::out::{Colour, Out, note, printable};

/// Longest prompt read from standard input, in bytes; the coordinator takes 2 MiB in all.
const PROMPT_BYTES_MAX: u64 = 2 << 20;
/// How often a broken answer is taken up again where it was.
const RESUMES: u32 = 6;

const EXAMPLES: &str = "\
Without PROMPT it is a conversation on a terminal (/quit leaves, /clear forgets, Ctrl-C stops an answer),
and otherwise standard input is the prompt, as it is for -.

Examples:
  ingle chat 'Name three uses of a hearth.'
  ingle chat --system 'Answer in German.' --temperature 0.7
  ingle chat --max-tokens 60 < letter.txt
  cat letter.txt | ingle chat -
  ingle chat --json 'Say hello.'                  # frames, one per line";

/// Ask a model, once or in a conversation
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// What to ask; - reads it from standard input
    prompt: Option<String>,
    /// Name of a model; needed only where several would do
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    model: String,
    /// What the model is told first. @FILE reads a file
    #[arg(long, value_name = "TEXT|@FILE")]
    system: Option<String>,
    /// Say after each answer how fast it was
    #[arg(long)]
    stats: bool,
    // Last: what follows would come below its heading.
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub(crate) async fn run(client: &Client, args: ChatArgs) -> Result<(), Failure> {
    let mut chat = Chat {
        client,
        inference: client.inference().await?,
        stats: args.stats || client.out.terminal,
        history: Vec::new(),
        template: v1::GenerateRequest {
            model: args.model.clone(),
            max_tokens: args.sampling.max_tokens,
            sampling: args.sampling.to_wire(),
            stop: args.sampling.stop.clone(),
            ..Default::default()
        },
    };
    if let Some(system) = &args.system {
        chat.history.push(message("system", &text_or_file("--system", system)?));
    }
    match args.prompt {
        Some(prompt) if prompt == "-" => {
            let prompt = read_prompt()?;
            chat.once(&prompt).await
        }
        Some(prompt) => chat.once(&prompt).await,
        None if std::io::stdin().is_terminal() && !client.out.json => chat.converse().await,
        None => {
            let prompt = read_prompt()?;
            chat.once(&prompt).await
        }
    }
}

fn read_prompt() -> Result<String, Failure> {
    let mut prompt = String::new();
    std::io::stdin()
        .take(PROMPT_BYTES_MAX + 1)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::usage(format!("standard input can't be read as UTF-8 text: {error}")))?;
    if prompt.len() as u64 > PROMPT_BYTES_MAX {
        return Err(Failure::usage("standard input holds more than 2 MiB, the most a prompt may have"));
    }
    Ok(prompt)
}

fn message(role: &str, text: &str) -> v1::ChatMessage {
    let content = vec![v1::ContentPart { part: Some(Part::Text(text.to_owned())) }];
    v1::ChatMessage { role: role.into(), content, ..Default::default() }
}

struct Chat<'a> {
    client: &'a Client,
    inference: InferenceClient<Channel>,
    stats: bool,
    /// What was said so far, the system's word first.
    history: Vec<v1::ChatMessage>,
    template: v1::GenerateRequest,
}

/// How an answer ended.
enum Ended {
    Whole,
    Cancelled,
}

impl Chat<'_> {
    async fn once(&mut self, prompt: &str) -> Result<(), Failure> {
        if prompt.trim().is_empty() {
            return Err(Failure::usage("the prompt is empty"));
        }
        self.history.push(message("user", prompt));
        match self.answer().await? {
            (_, Ended::Whole) => Ok(()),
            (_, Ended::Cancelled) => Err(Failure::new(Exit::Interrupted, "the answer was cancelled")),
        }
    }

    async fn converse(&mut self) -> Result<(), Failure> {
        let out = self.client.out;
        let lines = Lines::start();
        note(out, "/quit leaves, /clear forgets what was said, Ctrl-C stops an answer");
        loop {
            let line = tokio::select! {
                line = lines.next(out) => line?,
                _ = tokio::signal::ctrl_c() => None,
            };
            let Some(line) = line else {
                out.line("")?;
                return Ok(());
            };
            match line.trim() {
                "" => continue,
                "/quit" | "/exit" | "/q" => return Ok(()),
                "/clear" => {
                    self.history.retain(|m| m.role == "system");
                    continue;
                }
                command if command.starts_with('/') && !command.contains(' ') => {
                    note(out, format!("{command} is no command; there are /quit and /clear"));
                    continue;
                }
                said => self.history.push(message("user", said)),
            }
            match self.answer().await {
                // A cancelled answer was said as far as it went.
                Ok((text, _)) => self.history.push(message("assistant", &text)),
                Err(failure) if failure.exit == Exit::BrokenPipe => return Err(failure),
                // The conversation goes on: say what is wrong and forget the question.
                Err(failure) => {
                    self.history.pop();
                    crate::out::report(false, &failure);
                }
            }
        }
    }

    /// Streams one answer to standard output; Ctrl-C cancels it.
    async fn answer(&mut self) -> Result<(String, Ended), Failure> {
        let out = self.client.out;
        let request = v1::GenerateRequest { messages: self.history.clone(), ..self.template.clone() };
        let mut answer = Answer { out, text: String::new(), finished: None, started: None };
        let client = self.client;
        let inference = &mut self.inference;
        let ended = tokio::select! {
            done = stream(client, inference, request, &mut answer) => done.map(|()| Ended::Whole),
            // Dropping the stream tells the coordinator, and it tells the node.
            _ = tokio::signal::ctrl_c() => Ok(Ended::Cancelled),
        };
        if !out.json && (!answer.text.is_empty() || ended.is_ok()) {
            out.line("")?;
        }
        let ended = ended?;
        if self.stats {
            answer.say_how_fast();
        }
        Ok((answer.text, ended))
    }
}

/// Reads frames until the last one; a connection that breaks is taken up again at the last frame.
async fn stream(
    client: &Client,
    inference: &mut InferenceClient<Channel>,
    mut request: v1::GenerateRequest,
    answer: &mut Answer,
) -> Result<(), Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(4));
    let mut put_off = PutOff::new(client);
    loop {
        let model = request.model.clone();
        let begun = answer.begun();
        let asked = client.long_call(inference.generate(request.clone()));
        // Until it has begun nobody sees anything of it.
        let asked =
            if begun { asked.await } else { Box::pin(waited(client, v1::JobKind::Generate, &model, asked)).await };
        let failure = match asked {
            Ok(mut frames) => loop {
                let next = client.long_call(async { frames.message().await.map(tonic::Response::new) });
                let next =
                    if answer.begun() { next.await } else { waited(client, v1::JobKind::Generate, &model, next).await };
                match next {
                    Ok(Some(frame)) => {
                        if !frame.resume_token.is_empty() {
                            request.resume_token.clone_from(&frame.resume_token);
                        }
                        backoff.reset();
                        if answer.take(&frame)? {
                            return Ok(());
                        }
                    }
                    Ok(None) => break Failure::unreachable(&client.endpoint, "the answer broke off"),
                    Err(failure) => break failure,
                }
            },
            Err(failure) => failure,
        };
        // Nothing of it has been seen: the same may be asked again.
        if request.resume_token.is_empty() && !answer.begun() && put_off.again(client, &failure).await {
            continue;
        }
        // Without a token we would get a new answer, not the rest of this one.
        if request.resume_token.is_empty() || !failure.retryable() || backoff.attempt() >= RESUMES {
            return Err(failure);
        }
        tokio::time::sleep(backoff.next_random()).await;
        // Of several coordinators another may be there.
        if let Ok(connected) = client.inference().await {
            *inference = connected;
        }
    }
}

/// What has come of an answer.
struct Answer {
    out: Out,
    /// All text so far; its length is the offset of what comes next.
    text: String,
    started: Option<v1::GenerateStarted>,
    finished: Option<v1::GenerateFinished>,
}

impl Answer {
    fn begun(&self) -> bool {
        self.started.is_some() || !self.text.is_empty()
    }

    /// Shows a frame. True for the last one.
    fn take(&mut self, response: &v1::GenerateResponse) -> Result<bool, Failure> {
        let piece = match &response.frame {
            Some(Frame::Started(started)) => {
                self.started = Some(started.clone());
                None
            }
            Some(Frame::Delta(delta)) => Some((delta.text_offset, delta.text.as_str())),
            Some(Frame::Finished(finished)) => {
                self.finished = Some(finished.clone());
                Some((finished.text_offset, finished.text.as_str()))
            }
            None => None,
        };
        let fresh = piece.map(|(offset, text)| beyond(self.text.len(), offset, text).to_owned()).unwrap_or_default();
        self.text.push_str(&fresh);
        if self.out.json {
            self.out.json_line(&json::frame(response))?;
        } else if !fresh.is_empty() {
            self.out.text(&if self.out.terminal { printable(&fresh) } else { fresh })?;
        }
        Ok(self.finished.is_some())
    }

    fn say_how_fast(&self) {
        let Some(finished) = &self.finished else { return };
        let usage = finished.usage.unwrap_or_default();
        let timings = finished.timings.unwrap_or_default();
        let model =
            self.started.as_ref().and_then(|s| s.model.as_ref()).map(|m| m.name.as_str()).unwrap_or("the model");
        let per_second = |tokens: u32, us: u64| if us == 0 { 0.0 } else { f64::from(tokens) * 1e6 / us as f64 };
        let first = Duration::from_micros(timings.queue_us + timings.load_us + timings.prefill_us);
        let text = format!(
            "{model}: read {} tokens ({:.0}/s), wrote {} ({:.0}/s), first after {}, ended by {}",
            usage.prompt_tokens,
            per_second(usage.prompt_tokens.saturating_sub(usage.cached_tokens), timings.prefill_us),
            usage.output_tokens,
            per_second(usage.output_tokens, timings.decode_us),
            crate::human::duration(first),
            json::finish_reason(finished.reason()),
        );
        note(self.out, self.out.paint(Colour::Dim, &text));
    }
}

/// What of a piece lies beyond what has been shown: a resumed stream may begin earlier.
fn beyond(shown: usize, offset: u64, text: &str) -> &str {
    let known = usize::try_from((shown as u64).saturating_sub(offset)).unwrap_or(usize::MAX);
    text.get(known.min(text.len())..).unwrap_or_default()
}

/// Lines of the terminal, read on a thread of its own so that Ctrl-C is heard meanwhile.
struct Lines(mpsc::Sender<oneshot::Sender<Option<String>>>);

impl Lines {
    fn start() -> Self {
        let (ask, mut asked) = mpsc::channel::<oneshot::Sender<Option<String>>>(1);
        // Ends with the process at the latest: nothing is held that would need putting away.
        std::thread::spawn(move || {
            while let Some(answer) = asked.blocking_recv() {
                let mut line = String::new();
                let read = std::io::stdin().lock().read_line(&mut line);
                let _ = answer.send(matches!(read, Ok(n) if n > 0).then_some(line));
            }
        });
        Self(ask)
    }

    /// The next line; `None` at the end of input.
    async fn next(&self, out: Out) -> Result<Option<String>, Failure> {
        let mut stdout = std::io::stdout().lock();
        write!(stdout, "{}", out.paint(Colour::Bold, "> "))?;
        stdout.flush()?;
        drop(stdout);
        let (answer, line) = oneshot::channel();
        if self.0.send(answer).await.is_err() {
            return Ok(None);
        }
        Ok(line.await.unwrap_or(None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_stream_shows_nothing_twice() {
        assert_eq!(beyond(0, 0, "hello"), "hello");
        assert_eq!(beyond(5, 5, " there"), " there");
        assert_eq!(beyond(5, 3, "lo there"), " there");
        assert_eq!(beyond(9, 3, "lo"), "");
        assert_eq!(beyond(1, 0, "é"), "", "never cuts a character");
        let mut answer = Answer { out: Out::new(false), text: String::new(), started: None, finished: None };
        let delta = |text_offset, text: &str| v1::GenerateResponse {
            frame: Some(Frame::Delta(v1::GenerateDelta { text_offset, text: text.into(), ..Default::default() })),
            ..Default::default()
        };
        for frame in [delta(0, "one "), delta(4, "two "), delta(0, "one "), delta(4, "two "), delta(8, "three")] {
            assert!(!answer.take(&frame).expect("room"));
        }
        assert_eq!(answer.text, "one two three");
        let last = v1::GenerateResponse {
            frame: Some(Frame::Finished(v1::GenerateFinished {
                text: ".".into(),
                text_offset: 13,
                ..Default::default()
            })),
            ..Default::default()
        };
        assert!(answer.take(&last).expect("room"));
        assert_eq!(answer.text, "one two three.");
    }
}
