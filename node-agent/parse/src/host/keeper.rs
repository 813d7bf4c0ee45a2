//! The thread that starts children.
//!
//! The kernel's signal at a parent's death comes when the *thread* that started the child ends, and threads of a blocking
//! pool come and go. So one thread starts all children of a host, and lives as long as the host.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::child::Child;
use crate::limits::Limits;

/// What children are started from.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    pub(super) limits: Limits,
}

type Started = io::Result<Child>;

/// A handle on the thread. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Keeper {
    orders: Option<SyncSender<SyncSender<Started>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn new(recipe: Recipe) -> io::Result<Self> {
        // One order waits at most per child that may be alive; senders block beyond that.
        let (orders, taken) = sync_channel(recipe.limits.children_max as usize);
        let thread = std::thread::Builder::new().name("parse-keeper".into()).spawn(move || keep(&recipe, &taken))?;
        Ok(Keeper { orders: Some(orders), thread: Some(thread) })
    }

    /// Starts a child.
    pub(super) fn start(&self) -> Started {
        let gone = || io::Error::other("the thread that starts children is gone");
        let (answer, started) = sync_channel(1);
        self.orders.as_ref().ok_or_else(gone)?.send(answer).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }
}

fn keep(recipe: &Recipe, orders: &Receiver<SyncSender<Started>>) {
    while let Ok(answer) = orders.recv() {
        // An orderer that is gone drops the child, which ends it.
        let _ = answer.send(Child::start(recipe));
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.orders.take();
        if let Some(thread) = self.thread.take() {
            // It only waits for orders, and there are no more.
            let _ = thread.join();
        }
    }
}
