//! One generation: what another node needs to go on with it, and what its reader has been and may be sent again.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ingle_proto::v1::{self, generate_response::Frame};
use ingle_proto::{ErrorCode, Problem};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};

use super::micros;
use super::reader::{Last, Source};
use crate::core::CallId;

/// Frames that wait for a reader before it counts as too slow.
const WAITING_MAX: usize = 1_024;
/// Frames kept for a reader that comes back, and their bytes.
const KEPT_MAX: (usize, usize) = (8_192, 1 << 20);

/// What became of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// The stream goes on.
    Goes,
    /// It was the last.
    Finished,
    /// Its reader can't keep up and was told so; nobody waits for the rest.
    TooSlow,
    /// Something of it is missing for good.
    Lost,
}

pub(super) struct Stream {
    id: CallId,
    request: v1::GenerateRequest,
    seed: u64,
    pub(super) traceparent: String,
    pub(super) attempt: Option<u64>,
    moved: bool,
    prompt_tokens: Vec<u32>,
    emitted: Vec<u32>,
    /// Bytes of text that the reader has been sent.
    text_sent: u64,
    started: bool,
    sink: Option<(mpsc::Sender<v1::GenerateResponse>, Last)>,
    /// Readers so far: the current one's number.
    pub(super) readers: u64,
    kept: VecDeque<v1::GenerateResponse>,
    kept_bytes: usize,
    /// Number of the next frame.
    pub(super) next: u64,
    pub(super) ended: Option<Instant>,
    /// Dropped with the stream or at its end, whichever is first.
    running: Option<oneshot::Sender<()>>,
    since: Instant,
    queue_us: Option<u64>,
}

impl Stream {
    /// A stream without frames, and what resolves when it has ended.
    pub(super) fn new(
        id: CallId,
        request: v1::GenerateRequest,
        seed: u64,
        traceparent: String,
    ) -> (Self, oneshot::Receiver<()>) {
        let (running, ended) = oneshot::channel();
        let stream = Self {
            id,
            request,
            seed,
            traceparent,
            attempt: None,
            moved: false,
            prompt_tokens: Vec::new(),
            emitted: Vec::new(),
            text_sent: 0,
            started: false,
            sink: None,
            readers: 0,
            kept: VecDeque::new(),
            kept_bytes: 0,
            next: 0,
            ended: None,
            running: Some(running),
            since: Instant::now(),
            queue_us: None,
        };
        (stream, ended)
    }

    /// A stream that another leader began, in the middle: `work` as its node was told it, whose frames from there on follow.
    pub(super) fn adopted(id: CallId, attempt: u64, work: v1::GenerateWork) -> (Self, oneshot::Receiver<()>) {
        let request = work.request.unwrap_or_default();
        let seed = request.sampling.as_ref().and_then(|sampling| sampling.seed).unwrap_or_default();
        let (mut stream, ended) = Self::new(id, request, seed, String::new());
        stream.attempt = Some(attempt);
        stream.moved = true;
        stream.queue_us = Some(0);
        stream.started = !work.emitted.is_empty();
        // The first frame is the start, and each token has one.
        stream.next = if stream.started { 1 + work.emitted.len() as u64 } else { 0 };
        (stream.prompt_tokens, stream.emitted, stream.text_sent) = (work.prompt_tokens, work.emitted, work.text_offset);
        (stream, ended)
    }

    /// What placing it would go by.
    pub(super) fn size(&self) -> (String, u64, Option<u32>) {
        (self.request.model.clone(), super::prompt_bytes(&self.request), self.request.max_tokens)
    }

    /// A reader of the frames from number `from` on; the one before loses its place.
    pub(super) fn reader(&mut self, from: u64) -> Result<(u64, Source), Problem> {
        let first = self.next - self.kept.len() as u64;
        if !(first..=self.next).contains(&from) {
            return Err(Problem::new(
                ErrorCode::StreamGone,
                format!("frames {first} to {} of the stream are kept, not {from}; send the request again", self.next),
            ));
        }
        let skip = usize::try_from(from - first).unwrap_or(usize::MAX);
        let (sender, frames) = mpsc::channel(self.kept.len() - skip + WAITING_MAX);
        for frame in self.kept.iter().skip(skip) {
            // There is room for all of them.
            let _ = sender.try_send(frame.clone());
        }
        let last: Last = Arc::new(Mutex::default());
        if let Some((_, before)) = self.sink.take() {
            super::reader::end(&before, Problem::new(ErrorCode::StreamGone, "another reader resumed the stream"));
        }
        if self.ended.is_none() {
            self.sink = Some((sender, Arc::clone(&last)));
        }
        self.readers += 1;
        Ok((self.readers, Source { frames, last }))
    }

    /// What a node is to do, and the attempt that is replaced.
    pub(super) fn dispatch(&mut self, attempt: u64) -> (Option<u64>, v1::GenerateWork) {
        self.queue_us.get_or_insert_with(|| micros(self.since));
        let before = self.attempt.replace(attempt);
        self.moved |= before.is_some();
        let work = v1::GenerateWork {
            request: Some(self.request.clone()),
            prompt_tokens: self.prompt_tokens.clone(),
            emitted: self.emitted.clone(),
            text_offset: self.text_sent,
        };
        (before, work)
    }

    pub(super) fn take(&mut self, frame: v1::GenerateFrame) -> Taken {
        if self.attempt != Some(frame.attempt) || self.ended.is_some() {
            return Taken::Goes;
        }
        match frame.frame.and_then(|frame| frame.frame) {
            Some(Frame::Started(mut started)) => {
                if self.prompt_tokens.is_empty() {
                    self.prompt_tokens = frame.prompt_tokens;
                }
                if std::mem::replace(&mut self.started, true) {
                    return Taken::Goes;
                }
                started.request_id = format!("c-{}", self.id.0);
                started.seed = self.seed;
                self.push(Frame::Started(started))
            }
            Some(Frame::Delta(mut delta)) => {
                // A node sends again what may not have arrived.
                match (delta.index as usize).cmp(&self.emitted.len()) {
                    Ordering::Less => return Taken::Goes,
                    Ordering::Equal => {}
                    // Frames in between are gone: nobody can go on with what isn't known.
                    Ordering::Greater => {
                        let words = format!("token {} came where {} was expected", delta.index, self.emitted.len());
                        self.fail(Problem::new(ErrorCode::StreamGone, words));
                        return Taken::Lost;
                    }
                }
                self.emitted.push(delta.token);
                self.only_new(&mut delta.text_offset, &mut delta.text);
                self.push(Frame::Delta(delta))
            }
            Some(Frame::Finished(mut finished)) => {
                self.only_new(&mut finished.text_offset, &mut finished.text);
                let usage = finished.usage.get_or_insert_default();
                if self.moved {
                    // Each node counts what it did; the caller is told of each token once.
                    usage.prompt_tokens = u32::try_from(self.prompt_tokens.len()).unwrap_or(u32::MAX);
                    usage.output_tokens = u32::try_from(self.emitted.len()).unwrap_or(u32::MAX);
                }
                finished.timings.get_or_insert_default().queue_us = self.queue_us.unwrap_or(0);
                // A reader that is too slow for the last frame is told so and may come back for it: the stream is whole.
                let _ = self.push(Frame::Finished(finished));
                self.ended = Some(Instant::now());
                self.running = None;
                self.sink = None;
                Taken::Finished
            }
            None => Taken::Goes,
        }
    }

    /// Cuts off text that was sent before the stream moved.
    fn only_new(&mut self, offset: &mut u64, text: &mut String) {
        let known = usize::try_from(self.text_sent.saturating_sub(*offset)).unwrap_or(usize::MAX).min(text.len());
        let cut = text.ceil_char_boundary(known);
        text.drain(..cut);
        *offset += cut as u64;
        self.text_sent = self.text_sent.max(*offset + text.len() as u64);
    }

    fn push(&mut self, frame: Frame) -> Taken {
        let resume_token = format!("{}.{}", self.id.0, self.next);
        let frame = v1::GenerateResponse { frame: Some(frame), resume_token };
        self.next += 1;
        self.kept_bytes += frame.encoded_len();
        self.kept.push_back(frame.clone());
        while self.kept.len() > KEPT_MAX.0 || self.kept_bytes > KEPT_MAX.1 {
            let Some(dropped) = self.kept.pop_front() else { break };
            self.kept_bytes -= dropped.encoded_len();
        }
        let Some((sender, _)) = &self.sink else { return Taken::Goes };
        match sender.try_send(frame) {
            Err(mpsc::error::TrySendError::Full(_)) => {
                let words = format!("{WAITING_MAX} frames wait for the reader; read faster, or ask for fewer tokens");
                self.fail(Problem::new(ErrorCode::Overloaded, words));
                Taken::TooSlow
            }
            // A reader that left is heard of elsewhere.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Taken::Goes,
        }
    }

    /// Ends the reader's frames with a problem.
    pub(super) fn fail(&mut self, problem: Problem) {
        if let Some((_, last)) = self.sink.take() {
            super::reader::end(&last, problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(attempt: u64, index: u32, offset: u64, text: &str) -> v1::GenerateFrame {
        let delta = v1::GenerateDelta {
            index,
            token: 100 + index,
            text_offset: offset,
            text: text.into(),
            ..Default::default()
        };
        frame(attempt, Frame::Delta(delta))
    }

    fn frame(attempt: u64, frame: Frame) -> v1::GenerateFrame {
        let frame = v1::GenerateResponse { frame: Some(frame), resume_token: String::new() };
        v1::GenerateFrame { attempt, prompt_tokens: vec![7, 8], frame: Some(frame) }
    }

    fn started(attempt: u64) -> v1::GenerateFrame {
        frame(attempt, Frame::Started(v1::GenerateStarted::default()))
    }

    fn texts(source: &mut Source) -> Vec<String> {
        let mut texts = Vec::new();
        while let Ok(frame) = source.frames.try_recv() {
            texts.push(match frame.frame {
                Some(Frame::Started(started)) => format!("<{}>", started.seed),
                Some(Frame::Delta(delta)) => delta.text,
                Some(Frame::Finished(done)) => {
                    let usage = done.usage.unwrap();
                    format!("{}|{}+{}", done.text, usage.prompt_tokens, usage.output_tokens)
                }
                None => String::new(),
            });
        }
        texts
    }

    #[test]
    fn a_stream_that_moves_is_seamless() {
        let (mut stream, _ended) = Stream::new(CallId(3), v1::GenerateRequest::default(), 42, String::new());
        let (_, mut source) = stream.reader(0).unwrap();
        assert_eq!(stream.dispatch(1).0, None);
        stream.take(started(1));
        stream.take(delta(1, 0, 0, "on"));
        stream.take(delta(1, 0, 0, "on"));
        stream.take(delta(1, 1, 2, "cé"));
        let (before, work) = stream.dispatch(2);
        assert_eq!(before, Some(1));
        assert_eq!((work.prompt_tokens, work.emitted, work.text_offset), (vec![7, 8], vec![100, 101], 5));
        stream.take(delta(1, 2, 5, "stale"));
        stream.take(started(2));
        // The new node tells a little of the old text again, and even from within a character.
        stream.take(delta(2, 2, 2, "cé up"));
        let done = v1::GenerateFinished { text: "on".into(), text_offset: 8, ..Default::default() };
        assert_eq!(stream.take(frame(2, Frame::Finished(done))), Taken::Finished);
        assert_eq!(texts(&mut source), ["<42>", "on", "cé", " up", "on|2+3"]);
    }

    #[test]
    fn a_stream_of_another_leader_is_taken_up_where_its_reader_was() {
        let sampling = Some(v1::Sampling { seed: Some(42), ..Default::default() });
        let request = v1::GenerateRequest { sampling, ..Default::default() };
        let work = |emitted: &[u32], text_offset| v1::GenerateWork {
            request: Some(request.clone()),
            prompt_tokens: vec![7, 8],
            emitted: emitted.to_vec(),
            text_offset,
        };
        // From its beginning: all frames come again, numbered as they were.
        let (mut stream, _ended) = Stream::adopted(CallId(3), 1, work(&[], 0));
        for taken in [started(1), delta(1, 0, 0, "on"), delta(1, 1, 2, "ce")] {
            assert_eq!(stream.take(taken), Taken::Goes);
        }
        let (_, mut source) = stream.reader(2).unwrap();
        let done = v1::GenerateFinished { text_offset: 4, ..Default::default() };
        assert_eq!(stream.take(frame(1, Frame::Finished(done))), Taken::Finished);
        assert_eq!(texts(&mut source), ["ce", "|2+2"]);
        // Its node had it from another one already.
        let (mut stream, _ended) = Stream::adopted(CallId(3), 2, work(&[100, 101], 4));
        stream.take(started(2));
        stream.take(delta(2, 2, 2, "ce up"));
        let (_, mut source) = stream.reader(3).unwrap();
        assert_eq!(texts(&mut source), [" up"]);
        assert_eq!(stream.reader(2).err().map(|problem| problem.code), Some(ErrorCode::StreamGone), "not known here");
    }

    #[test]
    fn a_gap_ends_a_stream() {
        let (mut stream, _ended) = Stream::new(CallId(3), v1::GenerateRequest::default(), 1, String::new());
        let (_, source) = stream.reader(0).unwrap();
        stream.dispatch(1);
        stream.take(started(1));
        assert_eq!(stream.take(delta(1, 3, 9, "x")), Taken::Lost);
        assert_eq!(source.last.lock().unwrap().as_ref().map(|p| p.code), Some(ErrorCode::StreamGone));
    }

    #[test]
    fn kept_frames_are_read_again() {
        let (mut stream, _ended) = Stream::new(CallId(3), v1::GenerateRequest::default(), 1, String::new());
        stream.dispatch(1);
        stream.take(started(1));
        stream.take(delta(1, 0, 0, "a"));
        stream.take(delta(1, 1, 1, "b"));
        let (first, _source) = stream.reader(1).unwrap();
        let (second, mut source) = stream.reader(2).unwrap();
        assert_ne!(first, second);
        stream.take(delta(1, 2, 2, "c"));
        assert_eq!(texts(&mut source), ["b", "c"]);
        assert_eq!(stream.reader(5).err().map(|problem| problem.code), Some(ErrorCode::StreamGone));
    }

    #[test]
    fn a_stream_that_ends_under_a_slow_reader_is_whole() {
        let (mut stream, _ended) = Stream::new(CallId(3), v1::GenerateRequest::default(), 1, String::new());
        let (_, source) = stream.reader(0).unwrap();
        stream.dispatch(1);
        for index in 0..WAITING_MAX as u32 {
            assert_eq!(stream.take(delta(1, index, u64::from(index), "x")), Taken::Goes);
        }
        // One frame too many for the reader, and the last: the call has ended all the same.
        let done = v1::GenerateFinished { text_offset: WAITING_MAX as u64, ..Default::default() };
        assert_eq!(stream.take(frame(1, Frame::Finished(done))), Taken::Finished);
        assert_eq!(source.last.lock().unwrap().as_ref().map(|p| p.code), Some(ErrorCode::Overloaded));
        let (_, mut again) = stream.reader(WAITING_MAX as u64 - 1).unwrap();
        assert_eq!(texts(&mut again), ["x", "|0+0"]);
    }

    #[test]
    fn a_slow_reader_is_told_so() {
        let (mut stream, _ended) = Stream::new(CallId(3), v1::GenerateRequest::default(), 1, String::new());
        let (_, source) = stream.reader(0).unwrap();
        stream.dispatch(1);
        let taken: Vec<Taken> = (0..=WAITING_MAX as u32).map(|i| stream.take(delta(1, i, u64::from(i), "x"))).collect();
        assert_eq!(taken.iter().position(|t| *t == Taken::TooSlow), Some(WAITING_MAX));
        assert_eq!(source.last.lock().unwrap().as_ref().map(|p| p.code), Some(ErrorCode::Overloaded));
    }
}
