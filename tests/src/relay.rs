//! A wire between two parties that can be cut: quietly, as by a switch without power, or with a noise, as by a process that died.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// They pass.
    Whole,
    /// None passes, and nobody is told.
    Silent,
    /// Connections end, and new ones are refused or end at once.
    Broken,
}

/// Listens on a port of the system's choice and passes on to another. Dropping it ends its connections.
#[derive(Debug)]
pub struct Relay {
    /// Where it listens.
    pub address: SocketAddr,
    wire: watch::Sender<Wire>,
    running: JoinHandle<()>,
}

impl Relay {
    /// In front of this address.
    ///
    /// # Panics
    /// No port is free.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (wire, state) = watch::channel(Wire::Whole);
        #[allow(clippy::disallowed_methods, reason = "owned by the relay, which ends it when it is dropped")]
        let running = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((near, _)) = accepted else { continue };
                        connections.spawn(connection(near, target, state.clone()));
                    }
                    Some(_) = connections.join_next() => {}
                }
            }
        });
        Self { address, wire, running }
    }

    /// Cuts the wire, or mends it.
    pub fn set(&self, wire: Wire) {
        self.wire.send_replace(wire);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn connection(near: TcpStream, target: SocketAddr, state: watch::Receiver<Wire>) {
    if !passes(&mut state.clone()).await {
        return;
    }
    let Ok(far) = TcpStream::connect(target).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (mut near_from, mut near_to) = near.into_split();
    let (mut far_from, mut far_to) = far.into_split();
    let mut broken = state.clone();
    tokio::select! {
        () = pass(&mut near_from, &mut far_to, state.clone()) => {}
        () = pass(&mut far_from, &mut near_to, state) => {}
        _ = broken.wait_for(|wire| *wire == Wire::Broken) => {}
    }
}

/// Waits until bytes may pass. False if they never will.
async fn passes(state: &mut watch::Receiver<Wire>) -> bool {
    state.wait_for(|wire| *wire != Wire::Silent).await.is_ok_and(|wire| *wire == Wire::Whole)
}

async fn pass(
    from: &mut tokio::net::tcp::OwnedReadHalf,
    to: &mut tokio::net::tcp::OwnedWriteHalf,
    mut state: watch::Receiver<Wire>,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        if !passes(&mut state).await || to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eventually::in_time;

    #[tokio::test]
    async fn a_wire_passes_keeps_silent_and_breaks() {
        let server = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let relay = Relay::to(server.local_addr().expect("bound")).await;
        let mut near = TcpStream::connect(relay.address).await.expect("it listens");
        let (mut far, _) = in_time("the other end", server.accept()).await.expect("passed on");
        near.write_all(b"one").await.expect("written");
        let mut read = [0; 3];
        in_time("bytes", far.read_exact(&mut read)).await.expect("they pass");
        relay.set(Wire::Silent);
        near.write_all(b"two").await.expect("nobody is told");
        relay.set(Wire::Whole);
        in_time("what waited", far.read_exact(&mut read)).await.expect("it passes in the end");
        assert_eq!(&read, b"two");
        relay.set(Wire::Broken);
        assert_eq!(in_time("the end", far.read(&mut read)).await.unwrap_or(0), 0);
        assert_eq!(in_time("the end", near.read(&mut read)).await.unwrap_or(0), 0);
    }
}
