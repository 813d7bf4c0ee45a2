//! One client's connection: records in, a bounded number of calls at once on threads that may block, replies out.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinSet;

use super::faults::Fate;
use super::programs::Programs;
use crate::export::nfs::record;

/// Calls at once on one connection; further ones are read when one of these has ended.
const IN_FLIGHT_MAX: usize = 32;
/// A client that doesn't take its replies for so long is gone.
const REPLY_MAX: Duration = Duration::from_secs(60);

/// Serves until the client closes, breaks the protocol, or stops taking replies.
pub(super) async fn serve(stream: TcpStream, programs: Arc<Programs>) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let (input, mut output) = stream.into_split();
    let cut = Arc::new(Notify::new());
    let (replies, mut outbox) = mpsc::channel::<Vec<u8>>(IN_FLIGHT_MAX);
    let writing = async move {
        while let Some(reply) = outbox.recv().await {
            match tokio::time::timeout(REPLY_MAX, output.write_all(&reply)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
    };
    let told = Arc::clone(&cut);
    let reading = async move {
        let mut input = BufReader::with_capacity(64 << 10, input);
        let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
        let mut calls = JoinSet::new();
        loop {
            while calls.try_join_next().is_some() {}
            let slot = slots.clone().acquire_owned().await.expect("the semaphore is never closed");
            let record = match record::read(&mut input).await {
                Ok(Some(record)) => record,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "the connection is given up");
                    break;
                }
            };
            let (programs, replies, cut) = (programs.clone(), replies.clone(), told.clone());
            calls.spawn(async move {
                let _slot = slot;
                let fate = programs.faults.before().await;
                if fate == Fate::CutBefore {
                    return cut.notify_one();
                }
                let answered = tokio::task::spawn_blocking(move || programs.answer(record)).await;
                if fate == Fate::CutAfter {
                    return cut.notify_one();
                }
                if let Ok(Some(reply)) = answered {
                    let _ = replies.send(reply).await;
                }
            });
        }
        // What was begun is answered: the client may have closed its sending half only.
        drop(replies);
        while calls.join_next().await.is_some() {}
    };
    // The writer ends after the reader has dropped its last sender; a writer that ends first ends the reader.
    tokio::pin!(writing);
    tokio::select! {
        () = &mut writing => {}
        () = cut.notified() => {}
        () = reading => writing.await,
    }
}
