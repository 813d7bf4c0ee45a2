//! A wire with a round trip: what comes in goes on half a round trip later, in both directions.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Bytes of one read; what is under way is bounded by the messages below.
const READ_BYTES: usize = 256 << 10;
const UNDER_WAY: usize = 256;

/// Listens until the process ends, and connects each connection to `target`; its address.
///
/// # Errors
/// No port is free.
pub(crate) fn wire(target: SocketAddr, round_trip: Duration) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(target) else { continue };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let (Ok(near2), Ok(far2)) = (near.try_clone(), far.try_clone()) else { continue };
            one_way(near, far, round_trip / 2);
            one_way(far2, near2, round_trip / 2);
        }
    });
    Ok(address)
}

/// Two threads: tokio's timers tick in whole milliseconds, a sleeping thread wakes within tens of microseconds.
fn one_way(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    std::thread::spawn(move || {
        let mut buffer = vec![0; READ_BYTES];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if sender.send((Instant::now() + delay, buffer[..read].to_vec())).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        for (due, bytes) in receiver {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                return;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_whole_and_late() {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let near = wire(server.local_addr().expect("bound"), Duration::from_millis(10)).expect("a wire");
        let mut client = TcpStream::connect(near).expect("a connection");
        let (mut far, _) = server.accept().expect("a connection");
        let begun = Instant::now();
        client.write_all(b"there").expect("sent");
        let mut got = [0; 5];
        far.read_exact(&mut got).expect("came");
        far.write_all(b"back!").expect("sent");
        client.read_exact(&mut got).expect("came");
        assert_eq!(&got, b"back!");
        assert!(begun.elapsed() >= Duration::from_millis(10), "no sooner than a round trip");
    }
}
