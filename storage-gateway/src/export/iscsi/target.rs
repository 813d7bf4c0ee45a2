//! Reads from a unit over whatever session there is: many in flight, asked again in a new session if theirs broke, each
//! within its deadline.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ingle_iscsi::scsi::{self, Capacity, Cdb, Sense, status};
use ingle_iscsi::{Event, Outcome, Session, Tag};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::buffers::Buffers;
use super::dial::Dialer;
use super::link::{Broken, Link};
use super::unit::{self, Unit};
use super::whole::{PIECE, Whole};
use crate::export::ExportError;

/// Requests that wait between callers and the session, beside those in flight.
const WAITING_MAX: usize = 256;
/// How often deadlines and silence are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Silence with commands in flight until the target is pinged; twice that, and the session is given up.
const QUIET: Duration = Duration::from_secs(5);
/// The same while nothing is asked.
const QUIET_IDLE: Duration = Duration::from_secs(30);
/// After a failure the next session is tried no sooner; doubled up to the second.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// When a command is sent again that the unit put off.
const PUT_OFF: Duration = Duration::from_millis(20);

type Answer<T> = oneshot::Sender<Result<T, ExportError>>;

/// What callers want.
enum What {
    /// Bytes of the unit.
    Read { offset: u64, length: u32, answer: Answer<Bytes> },
    /// A piece of a larger read: the whole, where in it, and the place for it.
    Piece { whole: Whole, start: u32, offset: u64, length: u32, buffer: BytesMut },
    /// What it is, asked of it now: a session is told of little that happens to its unit.
    Unit(Answer<Unit>),
}

struct Request {
    what: What,
    until: Instant,
    /// Not before; set for what was put off.
    after: Option<Instant>,
}

impl Request {
    fn fail(self, error: ExportError) {
        match self.what {
            What::Read { answer, .. } => drop(answer.send(Err(error))),
            What::Piece { whole, .. } => whole.fail(error),
            What::Unit(answer) => drop(answer.send(Err(error))),
        }
    }

    /// Nobody waits for it any more.
    fn abandoned(&self) -> bool {
        match &self.what {
            What::Read { answer, .. } => answer.is_closed(),
            What::Piece { whole, .. } => whole.abandoned(),
            What::Unit(answer) => answer.is_closed(),
        }
    }
}

/// A unit of a target. Dropping it ends its session.
pub(crate) struct Target {
    requests: mpsc::Sender<Request>,
    deadline: Duration,
    shown: String,
    /// Holds the driver: it fails nobody but its own callers, who get their errors from their deadlines.
    _driver: JoinSet<()>,
}

impl Target {
    /// Opens nothing: the first request does.
    pub(crate) fn new(dialer: Dialer) -> Self {
        let (requests, inbox) = mpsc::channel(WAITING_MAX);
        let (deadline, shown) = (dialer.options.deadline, dialer.url.shown.clone());
        let mut driver = JoinSet::new();
        driver.spawn(Driver::new(dialer, inbox).run());
        Self { requests, deadline, shown, _driver: driver }
    }

    /// What the unit is now.
    pub(crate) async fn unit(&self) -> Result<Unit, ExportError> {
        let (answer, answered) = oneshot::channel();
        self.request(What::Unit(answer), answered).await
    }

    /// Bytes of the unit: whole blocks, no more than [`Unit::read_max`], within it.
    pub(crate) async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let (answer, answered) = oneshot::channel();
        self.request(What::Read { offset, length, answer }, answered).await
    }

    async fn request<T>(
        &self,
        what: What,
        answered: oneshot::Receiver<Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        let until = Instant::now() + self.deadline;
        let gone = || ExportError::Unavailable(format!("{}: the driver of its session has ended", self.shown));
        let sent = tokio::time::timeout_at(until, self.requests.send(Request { what, until, after: None })).await;
        match sent {
            Ok(Ok(())) => answered.await.map_err(|_| gone())?,
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(late(&self.shown, self.deadline, "other reads are before it")),
        }
    }
}

/// A read of whole blocks.
fn blocks(unit: Unit, offset: u64, length: u32) -> Cdb {
    let size = unit.capacity.block_size;
    scsi::read(offset / u64::from(size), length / size)
}

fn late(shown: &str, deadline: Duration, why: &str) -> ExportError {
    ExportError::Unavailable(format!("{shown}: no answer within {} s: {why}", deadline.as_secs_f32()))
}

/// The one task that owns the session and everything that waits for it.
struct Driver {
    dialer: Dialer,
    inbox: mpsc::Receiver<Request>,
    /// To be sent, the oldest first.
    queue: VecDeque<Request>,
    /// In flight, by the slot of their tags.
    flying: Vec<Option<Request>>,
    buffers: Buffers,
    /// Why there is no session, for those whose deadline comes meanwhile.
    trouble: String,
}

impl Driver {
    fn new(dialer: Dialer, inbox: mpsc::Receiver<Request>) -> Self {
        let depth = dialer.options.depth;
        Self {
            dialer,
            inbox,
            queue: VecDeque::new(),
            buffers: Buffers::default(),
            flying: (0..depth).map(|_| None).collect(),
            trouble: String::new(),
        }
    }

    async fn run(mut self) {
        let mut pause = AGAIN.0;
        loop {
            // No session is opened for nobody.
            while self.queue.is_empty() {
                match self.inbox.recv().await {
                    Some(request) => self.queue.push_back(request),
                    None => return,
                }
            }
            let begun = Instant::now();
            match self.open().await {
                Ok((mut link, unit)) => {
                    let broken = self.serve(&mut link, unit).await;
                    let Some(broken) = broken else {
                        link.leave();
                        return;
                    };
                    tracing::info!(target = self.dialer.url.shown, %broken, "a session ended; a new one is opened");
                    self.trouble = broken.to_string();
                    self.back_to_queue();
                    // A session that stood for a while was a good one.
                    if begun.elapsed() > AGAIN.1 {
                        pause = AGAIN.0;
                        continue;
                    }
                }
                Err(error) => {
                    self.trouble = error.to_string();
                    // What only a person can change is told at once.
                    if !error.retryable() {
                        self.queue.drain(..).for_each(|request| request.fail(error.clone()));
                    }
                }
            }
            let wait = tokio::time::sleep(pause);
            self.meanwhile(wait).await;
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    /// A session, with what the unit is. Those who come meanwhile wait within their deadlines.
    async fn open(&mut self) -> Result<(Link, Unit), ExportError> {
        let options = &self.dialer.options;
        let (lun, depth, most) = (scsi::lun(self.dialer.url.lun), options.depth, options.deadline);
        // A copy: the future that opens must not hold what the waiting changes.
        let dialer = self.dialer.clone();
        let opening = async move {
            let whole = async {
                let (stream, agreed) = dialer.dial().await?;
                let mut link = Link::new(stream, Session::new(agreed, lun, depth));
                let unit = unit::look(&mut link, &dialer).await?;
                Ok((link, unit))
            };
            let answer = tokio::time::timeout(most, whole).await;
            answer.unwrap_or_else(|_| Err(late(&dialer.url.shown, most, "no session")))
        };
        self.meanwhile(opening).await
    }

    /// Does something that takes its time, while requests come in and reach their deadlines.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(request) = self.inbox.recv(), if self.queue.len() < WAITING_MAX => self.queue.push_back(request),
                _ = tick.tick() => {
                    self.expire();
                }
            }
        }
    }

    /// Carries requests out until the session breaks; `None` if nobody is left to make any.
    async fn serve(&mut self, link: &mut Link, unit: Unit) -> Option<Broken> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut pinged, mut peak) = (false, 0);
        loop {
            while let Some(event) = link.session.event() {
                match event {
                    Event::Ended(tag, outcome) => {
                        if let Err(broken) = self.ended(tag, outcome, unit) {
                            return Some(broken);
                        }
                    }
                    Event::Pong => pinged = false,
                    Event::Leave => return Some(Broken::Leave),
                }
            }
            // Who got an answer asks for more, if it is let: neither after each one, nor when the target has nothing left to do.
            let in_flight = link.session.in_flight();
            if peak > in_flight && (peak - in_flight) * 4 >= peak {
                peak = 0;
                tokio::task::yield_now().await;
            }
            // All that has come in the meantime goes out in one piece.
            while self.queue.len() < WAITING_MAX {
                let Ok(request) = self.inbox.try_recv() else { break };
                self.queue.push_back(request);
            }
            self.submit(link, unit);
            if let Err(broken) = link.send() {
                return Some(broken);
            }
            peak = peak.max(link.session.in_flight());
            let room = link.session.may_submit() && self.queue.len() < WAITING_MAX;
            tokio::select! {
                biased;
                came = link.receive() => {
                    if let Err(broken) = came {
                        return Some(broken);
                    }
                }
                request = self.inbox.recv(), if room => match request {
                    Some(request) => self.queue.push_back(request),
                    None => return None,
                },
                _ = tick.tick() => {
                    if self.expire() {
                        // What doesn't end in time may never end: its session goes, and the others are asked again.
                        return Some(Broken::Silent(self.dialer.options.deadline));
                    }
                    let idle = link.session.in_flight() == 0;
                    if idle {
                        self.buffers.rest();
                    }
                    let most = if idle { QUIET_IDLE } else { QUIET };
                    let quiet = link.heard.elapsed();
                    if quiet > most {
                        if pinged && quiet > most + QUIET {
                            return Some(Broken::Silent(quiet));
                        }
                        pinged = true;
                        link.session.ping();
                    }
                }
            }
        }
    }

    /// Sends what waits, as far as the session takes it.
    fn submit(&mut self, link: &mut Link, unit: Unit) {
        let now = Instant::now();
        let mut put_off = 0;
        while put_off < self.queue.len() && link.session.may_submit() {
            let Some(request) = self.queue.pop_front() else { break };
            if request.after.is_some_and(|after| after > now) {
                self.queue.push_back(request);
                put_off += 1;
                continue;
            }
            if request.abandoned() {
                continue;
            }
            let Request { what, until, .. } = request;
            match what {
                What::Unit(_) => {
                    let (cdb, request) = (scsi::read_capacity(unit::CAPACITY), Request { what, until, after: None });
                    self.fly(link, request, &cdb, unit::CAPACITY, BytesMut::new());
                }
                What::Read { offset, length, answer } => {
                    let size = u64::from(unit.capacity.block_size);
                    let end = offset.checked_add(length.into());
                    let whole = offset % size == 0 && u64::from(length) % size == 0 && length <= unit.read_max;
                    if !whole || end.is_none_or(|end| end > unit.capacity.bytes()) {
                        let bytes = unit.capacity.bytes();
                        let why = format!("a read of {length} bytes at {offset} of a unit of {bytes} bytes");
                        drop(answer.send(Err(self.dialer.broken(why))));
                        continue;
                    }
                    let buffer = self.buffers.take(length);
                    if length > PIECE {
                        let (whole, pieces) = Whole::cut(buffer, length, answer);
                        for (start, length, buffer) in pieces.into_iter().rev() {
                            let (whole, offset) = (whole.clone(), offset + u64::from(start));
                            let what = What::Piece { whole, start, offset, length, buffer };
                            self.queue.push_front(Request { what, until, after: None });
                        }
                        continue;
                    }
                    let what = What::Read { offset, length, answer };
                    let request = Request { what, until, after: None };
                    self.fly(link, request, &blocks(unit, offset, length), length, buffer);
                }
                What::Piece { whole, start, offset, length, buffer } => {
                    let what = What::Piece { whole, start, offset, length, buffer: BytesMut::new() };
                    let request = Request { what, until, after: None };
                    self.fly(link, request, &blocks(unit, offset, length), length, buffer);
                }
            }
        }
    }

    /// Sends a command for which there is room, and which answers with so many bytes.
    fn fly(&mut self, link: &mut Link, request: Request, cdb: &Cdb, length: u32, buffer: BytesMut) {
        match link.session.submit(cdb, length, buffer) {
            Some(tag) => self.flying[tag.slot()] = Some(request),
            None => self.queue.push_front(request),
        }
    }

    fn ended(&mut self, tag: Tag, outcome: Outcome, unit: Unit) -> Result<(), Broken> {
        let Some(mut request) = self.flying[tag.slot()].take() else { return Ok(()) };
        if let Outcome::Failed { status, sense } = &outcome
            && (sense.is_some_and(Sense::passing) || matches!(*status, status::BUSY | status::TASK_SET_FULL))
        {
            request.after = Some(Instant::now() + PUT_OFF);
            self.trouble = unit::failure(*status, *sense);
            self.queue.push_back(request);
            return Ok(());
        }
        let (offset, length) = match &request.what {
            What::Read { offset, length, .. } | What::Piece { offset, length, .. } => (*offset, *length),
            What::Unit(_) => return self.told(request, &outcome, unit),
        };
        match outcome {
            Outcome::Done(data) if data.len() == length as usize => match request.what {
                What::Read { answer, .. } => drop(answer.send(Ok(self.buffers.lend(data)))),
                What::Piece { whole, start, .. } => {
                    if let Some((data, answer)) = whole.arrived(start, data) {
                        drop(answer.send(Ok(self.buffers.lend(data))));
                    }
                }
                What::Unit(_) => {}
            },
            Outcome::Done(data) => request.fail(self.short(&data, offset, length)),
            Outcome::Failed { status, sense } => {
                let why = format!("{length} bytes at {offset}: {}", unit::failure(status, sense));
                request.fail(match status {
                    status::RESERVATION_CONFLICT => ExportError::Unavailable(format!(
                        "{}: {why}: another initiator has reserved it for itself",
                        self.dialer.url.shown
                    )),
                    _ => self.dialer.broken(why),
                });
            }
        }
        Ok(())
    }

    /// What the unit says of itself, which its session knew; or else whoever asked waits for a session that finds out.
    fn told(&mut self, request: Request, outcome: &Outcome, unit: Unit) -> Result<(), Broken> {
        let same = matches!(outcome, Outcome::Done(data) if Capacity::read(data) == Ok(unit.capacity));
        match request.what {
            What::Unit(answer) if same => {
                drop(answer.send(Ok(unit)));
                Ok(())
            }
            what => {
                self.queue.push_front(Request { what, ..request });
                Err(Broken::Another)
            }
        }
    }

    fn short(&self, data: &BytesMut, offset: u64, length: u32) -> ExportError {
        self.dialer.broken(format!("{} of {length} bytes at {offset}, and the unit calls that done", data.len()))
    }

    /// The session is gone: what was in flight is asked again, before everything else.
    fn back_to_queue(&mut self) {
        let flying: Vec<Request> = self.flying.iter_mut().filter_map(Option::take).collect();
        flying.into_iter().for_each(|request| self.queue.push_front(request));
    }

    /// Fails what is too late. Whether any of it was in flight.
    fn expire(&mut self) -> bool {
        let now = Instant::now();
        let (shown, deadline) = (self.dialer.url.shown.clone(), self.dialer.options.deadline);
        let why = if self.trouble.is_empty() { "the target is slow" } else { self.trouble.as_str() };
        if self.queue.iter().any(|request| request.until <= now) {
            let (late_ones, rest): (Vec<_>, Vec<_>) = self.queue.drain(..).partition(|request| request.until <= now);
            self.queue = rest.into();
            late_ones.into_iter().for_each(|request| request.fail(late(&shown, deadline, why)));
        }
        let mut flying = false;
        for place in &mut self.flying {
            if let Some(request) = place.take_if(|request| request.until <= now) {
                flying = true;
                request.fail(late(&shown, deadline, "the target has not answered it"));
            }
        }
        flying
    }
}
