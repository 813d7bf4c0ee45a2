//! Targets that lie, stall or have no end: each call ends in an error, within its deadline.

use std::time::Duration;

use ingle_iscsi::pdu::HEADER;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// What the target does once the session stands, after having taken a READ with this tag.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Announces 16 MiB of data.
    Huge,
    /// Answers another command.
    Stranger,
    /// Sends half, and says that this was it.
    Short,
    /// Sends the same half twice.
    Overlapping,
    /// Says nothing more.
    Silent,
    /// Ends the connection.
    Gone,
    /// Is busy, always.
    Busy,
    /// Asks us to leave, always.
    Leave,
    /// Sends bytes that are no PDU.
    Noise,
}

/// What the target does in the login.
#[derive(Clone, Copy, Debug)]
enum Door {
    Open,
    /// Never says that the session stands.
    Endless,
    /// Announces 16 MiB of text.
    Huge,
    /// Sends us to itself.
    Moved,
    /// Takes the request, and nothing more happens.
    Silent,
}

const BLOCKS: u64 = 4096;

struct Liar {
    port: u16,
    _accepting: JoinSet<()>,
}

impl Liar {
    async fn start(door: Door, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(async move { talk(stream, port, door, lie).await.unwrap_or(()) });
            }
        });
        Self { port, _accepting: accepting }
    }

    fn export(&self, deadline: Duration) -> IscsiExport {
        let url = format!("iscsi://127.0.0.1:{}/iqn.2026-11.test:liar/0", self.port);
        IscsiExport::new(&url, &IscsiOptions { deadline, ..IscsiOptions::default() }).expect("a sound URL")
    }
}

fn header(first: u8, flags: u8, data: usize, words: &[(usize, u32)]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    (header[0], header[1]) = (first, flags);
    header[5..8].copy_from_slice(&u32::try_from(data).expect("small").to_be_bytes()[1..]);
    for (at, word) in words {
        header[*at..*at + 4].copy_from_slice(&word.to_be_bytes());
    }
    header
}

async fn talk(mut stream: TcpStream, port: u16, door: Door, lie: Lie) -> std::io::Result<()> {
    let mut stat_sn = 0_u32;
    loop {
        let mut request = [0; HEADER];
        stream.read_exact(&mut request).await?;
        let length = usize::from(request[6]) << 8 | usize::from(request[7]);
        let mut text = vec![0; length.next_multiple_of(4)];
        stream.read_exact(&mut text).await?;
        let tag = u32::from_be_bytes(*request[16..].first_chunk().expect("four of 48"));
        let data = |data: &[u8], offset: u32, number: u32| {
            let words = [(16, tag), (20, u32::MAX), (28, 99), (32, 199), (36, number), (40, offset)];
            [&header(0x25, 0, data.len(), &words)[..], data].concat()
        };
        let numbers = [(16, tag), (24, stat_sn), (28, 99), (32, 199)];
        let end = |status: u8| {
            let mut header = header(0x21, 0x80, 0, &numbers);
            header[3] = status;
            header.to_vec()
        };
        let answer = match request[0] & 0x3f {
            0x03 => match door {
                Door::Silent => std::future::pending().await,
                Door::Huge => header(0x23, 0x81, 0xff_ffff, &numbers).to_vec(),
                Door::Endless => header(0x23, 0x40, 0, &numbers).to_vec(),
                Door::Moved => {
                    let text = format!("TargetAddress=127.0.0.1:{port}\0");
                    let mut answer = header(0x23, 0, text.len(), &numbers);
                    (answer[36], answer[37]) = (1, 1);
                    let mut answer = [&answer[..], text.as_bytes()].concat();
                    answer.resize(answer.len().next_multiple_of(4), 0);
                    answer
                }
                Door::Open => {
                    let stage = request[1] & 0x0c;
                    let mut answer = header(0x23, if stage == 0 { 0x81 } else { 0x87 }, 0, &numbers);
                    answer[15] = 1;
                    answer.to_vec()
                }
            },
            0x00 => header(0x20, 0x80, 0, &[(16, tag), (20, u32::MAX), (24, stat_sn), (28, 99), (32, 199)]).to_vec(),
            0x01 => match request[32] {
                0x12 if request[33] == 0 => [data(&[0; 36], 0, 0), end(0)].concat(),
                0x12 => end(2),
                0x9e => {
                    let mut capacity = [0; 32];
                    capacity[..8].copy_from_slice(&(BLOCKS - 1).to_be_bytes());
                    capacity[10] = 2;
                    [data(&capacity, 0, 0), end(0)].concat()
                }
                0x88 => match lie {
                    Lie::Huge => header(0x25, 0, 0xff_ffff, &numbers).to_vec(),
                    Lie::Stranger => header(0x21, 0x80, 0, &[(16, tag ^ 0x7000), (24, stat_sn), (32, 199)]).to_vec(),
                    Lie::Short => [data(&[7; 256], 0, 0), end(0)].concat(),
                    Lie::Overlapping => [data(&[7; 256], 0, 0), data(&[7; 256], 0, 1)].concat(),
                    Lie::Silent => std::future::pending().await,
                    Lie::Gone => return Ok(()),
                    Lie::Busy => end(8),
                    Lie::Leave => {
                        let mut asks = header(0x32, 0x80, 0, &[(16, u32::MAX), (24, stat_sn), (32, 199)]);
                        asks[36] = 1;
                        asks.to_vec()
                    }
                    Lie::Noise => vec![0xee; 4096],
                },
                _ => end(0),
            },
            _ => return Ok(()),
        };
        // One number per status; a ping's and a login's too.
        stat_sn += 1;
        stream.write_all(&answer).await?;
    }
}

/// Long beside what a call may take, short beside a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_millis(600);

async fn ends(door: Door, lie: Lie) -> ExportError {
    let liar = Liar::start(door, lie).await;
    let export = liar.export(DEADLINE);
    let answer = tokio::time::timeout(PATIENCE, export.read_unit(0, 512)).await;
    answer.unwrap_or_else(|_| panic!("{door:?}, {lie:?}: no end")).expect_err("a lie")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_in_a_session_end_in_errors() {
    for (lie, words) in [
        (Lie::Huge, "expected at most"),
        (Lie::Stranger, "isn't under way"),
        (Lie::Short, "256 of 512 bytes"),
        (Lie::Overlapping, "data at 0"),
        (Lie::Silent, "has not answered"),
        (Lie::Gone, "ended the connection"),
        (Lie::Busy, "BUSY"),
        (Lie::Leave, "asked to end the session"),
        (Lie::Noise, "broke the protocol"),
    ] {
        let error = ends(Door::Open, lie).await;
        assert!(error.to_string().contains(words), "{lie:?}: {error}");
        assert!(error.retryable(), "{lie:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lies_at_the_door_end_in_errors() {
    for (door, words) in [
        (Door::Endless, "24 answers"),
        (Door::Huge, "expected at most 8192"),
        (Door::Moved, "sent elsewhere more than 3 times"),
        (Door::Silent, "no answer within"),
    ] {
        let error = ends(door, Lie::Silent).await;
        assert!(error.to_string().contains(words), "{door:?}: {error}");
    }
}

#[tokio::test]
async fn nobody_there_is_said_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    drop(listener);
    let url = format!("iscsi://127.0.0.1:{port}/iqn.2026-11.test:none/0");
    let options = IscsiOptions { deadline: DEADLINE, ..IscsiOptions::default() };
    let error = IscsiExport::connect(&url, &options).await.err().expect("nobody listens");
    assert!(error.retryable() && error.to_string().contains("no connection to 127.0.0.1"), "{error}");
}
