//! One connection with a session on it: what is to be sent goes in few system calls, what comes goes where it belongs.

use std::io::ErrorKind;
use std::time::Duration;

use bytes::BytesMut;
use ingle_iscsi::scsi::Cdb;
use ingle_iscsi::{Event, Fault, Outcome, Session};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Bytes that are read at once where small answers are expected: dozens of them.
const SMALL: usize = 128 * 1024;
/// Bytes that are read at once before large data: a header, and little that must be copied afterwards.
const HEAD: usize = 512;
/// From here on data is read where it belongs, rather than with what follows it.
const DIRECT: usize = 16 * 1024;

/// Why a connection is given up.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum Broken {
    /// It ended.
    #[error("the target ended the connection")]
    Ended,
    /// It asked us to end it.
    #[error("the target asked to end the session")]
    Leave,
    /// The system said so.
    #[error("the connection broke: {0}")]
    Io(String),
    /// The unit was replaced, or has grown or shrunk.
    #[error("the unit isn't what it was when the session was opened")]
    Another,
    /// The target sent what can't be.
    #[error("the target broke the protocol: {0}")]
    Fault(#[from] Fault),
    /// Nothing came.
    #[error("the target said nothing for {} s", .0.as_secs_f32())]
    Silent(Duration),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error.to_string())
    }
}

/// See the module.
pub(crate) struct Link {
    stream: TcpStream,
    pub(crate) session: Session,
    scratch: Vec<u8>,
    /// When something came last.
    pub(crate) heard: Instant,
}

impl Link {
    pub(crate) fn new(stream: TcpStream, session: Session) -> Self {
        Self { stream, session, scratch: vec![0; SMALL], heard: Instant::now() }
    }

    /// Sends what there is, as far as it goes without waiting.
    pub(crate) fn send(&mut self) -> Result<(), Broken> {
        while !self.session.output().is_empty() {
            match self.stream.try_write(self.session.output()) {
                Ok(count) => self.session.sent(count),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until something came, and takes it; or until what is to be sent can be. What has come is never lost if this is
    /// dropped while it waits.
    pub(crate) async fn receive(&mut self) -> Result<(), Broken> {
        if !self.session.output().is_empty() {
            let ready = self.stream.ready(Interest::READABLE | Interest::WRITABLE).await?;
            if ready.is_writable() {
                return self.send();
            }
        }
        let place = self.session.direct().filter(|place| place.limit() >= DIRECT);
        if let Some(mut place) = place {
            let count = self.stream.read_buf(&mut place).await?;
            self.session.placed(count)?;
            self.came(count)
        } else {
            let most = if self.session.expects_large() { HEAD } else { SMALL };
            let count = self.stream.read(&mut self.scratch[..most]).await?;
            self.session.take(&self.scratch[..count])?;
            self.came(count)
        }
    }

    fn came(&mut self, count: usize) -> Result<(), Broken> {
        self.heard = Instant::now();
        if count == 0 { Err(Broken::Ended) } else { Ok(()) }
    }

    /// One command alone, until it ends.
    pub(crate) async fn ask(&mut self, cdb: &Cdb, expected: u32) -> Result<Outcome, Broken> {
        let tag = loop {
            if let Some(tag) = self.session.submit(cdb, expected, BytesMut::new()) {
                break tag;
            }
            self.turn().await?;
        };
        loop {
            match self.session.event() {
                Some(Event::Ended(ended, outcome)) if ended == tag => return Ok(outcome),
                Some(Event::Leave) => return Err(Broken::Leave),
                Some(_) => {}
                None => self.turn().await?,
            }
        }
    }

    async fn turn(&mut self) -> Result<(), Broken> {
        self.send()?;
        self.receive().await
    }

    /// Says goodbye, if that goes without waiting.
    pub(crate) fn leave(&mut self) {
        self.session.logout();
        let _ = self.send();
    }
}
