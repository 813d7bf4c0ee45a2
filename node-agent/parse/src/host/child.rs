//! One child process: started, asked, ended; and what its death says.

use std::io::{self, PipeReader, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::keeper::Recipe;
use crate::channel;
use crate::error::{ErrorKind, ParseError};
use crate::limits::{START, VARIABLE};
use crate::wire::{Reply, Request, VERSION};

/// Bytes of a dead child's last words that are looked at.
const COMPLAINT_BYTES: usize = 2_048;

/// A child that waits for requests. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Child {
    process: std::process::Child,
    socket: OwnedFd,
    complaints: PipeReader,
    cpu_s: u64,
    /// Documents it was given so far.
    pub(super) documents: u32,
    dead: bool,
}

impl Child {
    /// Starts a child and waits until it has set its limits.
    pub(super) fn start(recipe: &Recipe) -> io::Result<Self> {
        let (socket, its_end) = channel::pair()?;
        let (complaints, its_stderr) = io::pipe()?;
        // Neither side ever waits for the other here: what doesn't fit the pipe is lost, and that is fine.
        for end in [rustix::fd::AsFd::as_fd(&complaints), rustix::fd::AsFd::as_fd(&its_stderr)] {
            fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?;
        }
        let process = Command::new(&recipe.program)
            .args(&recipe.args)
            .env_clear()
            .env(VARIABLE, recipe.limits.for_child())
            .current_dir("/")
            .stdin(Stdio::from(its_end))
            .stdout(Stdio::null())
            .stderr(Stdio::from(OwnedFd::from(its_stderr)))
            // A group of its own: an interrupt typed at a terminal is for the node, which ends its children itself.
            .process_group(0)
            .spawn()?;
        let mut child = Child { process, socket, complaints, cpu_s: recipe.limits.cpu_s, documents: 0, dead: false };
        match child.reply(START) {
            Ok((Reply::Ready { version: VERSION }, _)) => Ok(child),
            Ok((other, _)) => Err(io::Error::other(format!("the child said {other:?} instead of being ready"))),
            Err(error) => Err(io::Error::other(format!("the child didn't get ready: {error}"))),
        }
    }

    /// Sends a request and waits for its reply. After an error the child is dead.
    pub(super) fn ask(
        &mut self,
        request: Request,
        file: Option<BorrowedFd<'_>>,
        within: Duration,
    ) -> Result<(Reply, Option<OwnedFd>), ParseError> {
        if channel::send(&self.socket, &request.pack(), file).is_err() {
            return Err(self.obituary());
        }
        let (reply, file) = self.reply(within)?;
        if let Reply::Failed { last: true, .. } = reply {
            self.end();
        }
        Ok((reply, file))
    }

    /// Sends a request that has no reply.
    pub(super) fn tell(&mut self, request: Request) {
        if channel::send(&self.socket, &request.pack(), None).is_err() {
            self.end();
        }
    }

    fn reply(&mut self, within: Duration) -> Result<(Reply, Option<OwnedFd>), ParseError> {
        match channel::readable_before(&self.socket, Instant::now() + within) {
            Ok(true) => {}
            Ok(false) => {
                self.end();
                let message = format!("parsing took longer than {} s and was ended", within.as_secs_f32());
                return Err(ParseError::new(ErrorKind::TimedOut, message));
            }
            Err(error) => return Err(self.lied(&format!("its socket failed: {error}"))),
        }
        match channel::receive(&self.socket) {
            Ok(Some(received)) => match Reply::unpack(&received.packet) {
                Some(reply) => Ok((reply, received.file)),
                None => Err(self.lied("its reply isn't one of the protocol")),
            },
            Ok(None) => Err(self.obituary()),
            Err(error) => Err(self.lied(&format!("its reply can't be received: {error}"))),
        }
    }

    /// Ends a child that broke the protocol.
    pub(super) fn lied(&mut self, how: &str) -> ParseError {
        self.end();
        ParseError::new(ErrorKind::Crashed { signal: 0 }, format!("the process that parsed it was ended: {how}"))
    }

    /// Whether it is alive and well, as far as the kernel knows.
    pub(super) fn is_alive(&mut self) -> bool {
        !self.dead && matches!(self.process.try_wait(), Ok(None))
    }

    /// Ends it now; its status where it had ended before.
    fn end(&mut self) -> Option<ExitStatus> {
        if self.dead {
            return None;
        }
        self.dead = true;
        // A process that has ended keeps its status until it is waited for, and the signal doesn't change that.
        let _ = self.process.kill();
        self.process.wait().ok()
    }

    /// What its end says about the document.
    fn obituary(&mut self) -> ParseError {
        let Some(status) = self.end() else {
            return ParseError::unavailable("the process that parses had ended before");
        };
        let mut complaint = Vec::new();
        // Not blocking, and its writers are gone: it ends at the pipe's end.
        let _ = (&self.complaints).take(1 << 20).read_to_end(&mut complaint);
        let complaint =
            String::from_utf8_lossy(&complaint[complaint.len().saturating_sub(COMPLAINT_BYTES)..]).into_owned();
        judge(status, &complaint, self.cpu_s)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Signal numbers, the same on every Linux we build for (signal(7)).
const HANGUP: i32 = 1;
const INTERRUPT: i32 = 2;
const ABORT: i32 = 6;
pub(super) const KILL: i32 = 9;
const TERMINATE: i32 = 15;
const CPU_EXCEEDED: i32 = 24;
const FILE_EXCEEDED: i32 = 25;

/// From the way a child ended to what is wrong.
fn judge(status: ExitStatus, complaint: &str, cpu_s: u64) -> ParseError {
    let error = |kind, message: &str| ParseError::new(kind, message);
    match status.signal() {
        Some(CPU_EXCEEDED) => {
            let message = format!("parsing took more than {cpu_s} s of a processor and was ended");
            ParseError::new(ErrorKind::TimedOut, message)
        }
        Some(FILE_EXCEEDED) => error(ErrorKind::TooLarge, "parsing made a file larger than any page, and was ended"),
        Some(ABORT) if complaint.contains("memory allocation of") => {
            error(ErrorKind::OutOfMemory, "parsing needed more memory than its limit")
        }
        Some(signal @ ABORT) if complaint.contains("overflowed its stack") => {
            error(ErrorKind::Crashed { signal }, "parsing it went too deep: it is nested beyond every document's need")
        }
        Some(HANGUP | INTERRUPT | TERMINATE) => {
            ParseError::unavailable("the process that parsed it was told to end; try again")
        }
        Some(signal @ KILL) => error(
            ErrorKind::Crashed { signal },
            "the process that parsed it was killed from outside (by the kernel, if the machine had no memory left)",
        ),
        Some(signal) => ParseError::new(ErrorKind::Crashed { signal }, format!("parsing crashed with signal {signal}")),
        None => {
            let last = complaint.trim().lines().last().unwrap_or("no last words");
            let last: String = last.chars().filter(|c| !c.is_control()).take(200).collect();
            let message = format!("the process that parsed it ended by itself ({status}): {last}");
            ParseError::new(ErrorKind::Crashed { signal: 0 }, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_told_apart() {
        let by = |signal: i32, complaint: &str| judge(ExitStatus::from_raw(signal), complaint, 60).kind;
        assert_eq!(by(24, ""), ErrorKind::TimedOut);
        assert_eq!(by(25, ""), ErrorKind::TooLarge);
        assert_eq!(by(6, "memory allocation of 4294967296 bytes failed\n"), ErrorKind::OutOfMemory);
        assert_eq!(by(6, "thread 'parse' has overflowed its stack\n"), ErrorKind::Crashed { signal: 6 });
        assert_eq!(by(9, ""), ErrorKind::Crashed { signal: 9 });
        assert_eq!(by(11, ""), ErrorKind::Crashed { signal: 11 });
        assert_eq!(by(15, ""), ErrorKind::Unavailable);
        let exit = judge(ExitStatus::from_raw(3 << 8), "one\ncan't find it\n", 60);
        assert_eq!(exit.kind, ErrorKind::Crashed { signal: 0 });
        assert!(exit.message.contains("can't find it"), "{exit}");
    }
}
