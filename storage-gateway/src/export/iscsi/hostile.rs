//! Targets that lie, stall or have no end: each call ends in an error, within its deadline. And what becomes of calls when
//! a target, its unit or what lies on it changes.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use ingle_iscsi::pdu::HEADER;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;

/// What the target does once the session stands, after having taken a READ with this tag.
#[derive(Clone, Copy, Debug)]
enum Lie {
    /// Answers with what lies on the unit.
    Truth,
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
    /// Knows no such target.
    Missing,
    /// Lets others in, not us.
    Barred,
    /// Never says that the session stands.
    Endless,
    /// Announces 16 MiB of text.
    Huge,
    /// Sends us to itself.
    Moved,
    /// Takes the request, and nothing more happens.
    Silent,
}

const BLOCK: usize = 512;

/// How the target behaves from now on.
struct Scene {
    door: Door,
    lie: Lie,
    /// What lies on the unit.
    unit: Vec<u8>,
}

struct Liar {
    port: u16,
    scene: Arc<Mutex<Scene>>,
    _accepting: JoinSet<()>,
}

impl Liar {
    async fn start(door: Door, lie: Lie) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let scene = Arc::new(Mutex::new(Scene { door, lie, unit: vec![0; 4096 * BLOCK] }));
        let played = scene.clone();
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let scene = played.clone();
                connections.spawn(async move { talk(stream, port, &scene).await.unwrap_or(()) });
            }
        });
        Self { port, scene, _accepting: accepting }
    }

    fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().expect("nobody panics with it")
    }

    fn turn(&self, door: Door, lie: Lie) {
        let mut scene = self.scene();
        (scene.door, scene.lie) = (door, lie);
    }

    fn url(&self) -> String {
        format!("iscsi://127.0.0.1:{}/iqn.2026-11.test:liar/0", self.port)
    }

    fn export(&self, deadline: Duration) -> IscsiExport {
        IscsiExport::new(&self.url(), &believing_nothing(deadline)).expect("a sound URL")
    }
}

fn believing_nothing(deadline: Duration) -> IscsiOptions {
    IscsiOptions { deadline, metadata_age: Duration::ZERO, ..IscsiOptions::default() }
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

async fn talk(mut stream: TcpStream, port: u16, scene: &Mutex<Scene>) -> std::io::Result<()> {
    let mut stat_sn = 0_u32;
    loop {
        let mut request = [0; HEADER];
        stream.read_exact(&mut request).await?;
        let length = usize::from(request[6]) << 8 | usize::from(request[7]);
        let mut text = vec![0; length.next_multiple_of(4)];
        stream.read_exact(&mut text).await?;
        let tag = u32::from_be_bytes(*request[16..].first_chunk().expect("four of 48"));
        let (door, lie, bytes) = {
            let scene = scene.lock().expect("nobody panics with it");
            (scene.door, scene.lie, scene.unit.len())
        };
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
        let refused = |detail: u8| {
            let mut answer = header(0x23, 0, 0, &numbers);
            (answer[36], answer[37]) = (2, detail);
            answer.to_vec()
        };
        let answer = match request[0] & 0x3f {
            0x03 => match door {
                Door::Missing => refused(3),
                Door::Barred => refused(2),
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
                    capacity[..8].copy_from_slice(&(bytes as u64 / BLOCK as u64 - 1).to_be_bytes());
                    capacity[10] = 2;
                    [data(&capacity, 0, 0), end(0)].concat()
                }
                0x88 => match lie {
                    Lie::Truth => {
                        let block = u64::from_be_bytes(*request[34..].first_chunk().expect("eight of 48"));
                        let blocks = u32::from_be_bytes(*request[42..].first_chunk().expect("four of 48"));
                        let start = usize::try_from(block).expect("in memory") * BLOCK;
                        let wanted = start..start + blocks as usize * BLOCK;
                        let held = scene.lock().expect("nobody panics with it").unit.get(wanted).map(<[u8]>::to_vec);
                        held.map_or_else(|| end(2), |held| [data(&held, 0, 0), end(0)].concat())
                    }
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

/// A volume of blocks of 1 KiB with a root, and nothing in it.
fn bare_volume(blocks: u32) -> Vec<u8> {
    let mut bytes = vec![0; blocks as usize * 1024];
    let superblock: [(usize, u32); 6] = [(0, 16), (0x4, blocks), (0x14, 1), (0x20, 8192), (0x28, 16), (0x38, 0x1_ef53)];
    // The only group says where its inodes lie; the second of those is the root, a directory with two names.
    let rest: [(usize, u32); 3] = [(2048 + 8, 5), (5 * 1024 + 128, 0x41ed), (5 * 1024 + 128 + 0x18, 2 << 16)];
    for (at, word) in superblock.map(|(at, word)| (1024 + at, word)).into_iter().chain(rest) {
        bytes[at..at + 4].copy_from_slice(&u32::to_le_bytes(word));
    }
    bytes
}

/// A disk whose first partition, from its first MiB on, holds that.
fn partitioned(volume: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    bytes[446 + 4] = 0x83;
    bytes[446 + 8..][..4].copy_from_slice(&2048_u32.to_le_bytes());
    bytes[446 + 12..][..4].copy_from_slice(&u32::try_from(volume.len() / BLOCK).expect("small").to_le_bytes());
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes.extend_from_slice(volume);
    bytes
}

async fn root_is_there(export: &IscsiExport, when: &str) {
    let root = export.stat(&ObjectPath::root()).await.unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(root.kind, crate::export::Kind::Directory, "{when}");
}

/// A document is neither gone nor forbidden when its target, or its unit, is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_is_missing_or_refuses_us_says_nothing_of_documents() {
    let doc = ObjectPath::new("doc").expect("a path");
    for (door, words) in [(Door::Missing, "target iqn.2026-11.test:liar"), (Door::Barred, "this initiator may not")] {
        let liar = Liar::start(door, Lie::Truth).await;
        let error = IscsiExport::connect(&liar.url(), &believing_nothing(PATIENCE)).await.err().expect("refused");
        let told = matches!(
            (door, &error),
            (Door::Missing, ExportError::NotFound(_)) | (Door::Barred, ExportError::Denied { .. })
        );
        assert!(told && error.to_string().contains(words), "whoever sets it up: {error:?}");
        let export = liar.export(PATIENCE);
        for answer in [
            export.stat(&doc).await.map(drop),
            export.readable(&doc).await.map(drop),
            export.list(&doc, 9).await.map(drop),
            export.read_at(&doc, 0, 9).await.map(drop),
            export.read_with_attr(&doc, 0, 9).await.map(drop),
        ] {
            let error = answer.expect_err("nobody is let in");
            assert!(matches!(error, ExportError::Unavailable(_)) && error.to_string().contains(words), "{error:?}");
        }
    }
    // While it is read.
    let liar = Liar::start(Door::Open, Lie::Truth).await;
    liar.scene().unit = bare_volume(2048);
    let export = liar.export(PATIENCE);
    root_is_there(&export, "before").await;
    liar.turn(Door::Missing, Lie::Gone);
    let error = export.stat(&ObjectPath::root()).await.expect_err("its session is gone, and there is no other");
    assert!(matches!(error, ExportError::Unavailable(_)) && error.to_string().contains("offers"), "{error:?}");
    liar.turn(Door::Open, Lie::Truth);
    root_is_there(&export, "after").await;
    assert_eq!(export.stat(&doc).await, Err(ExportError::NotFound("doc".to_owned())), "by the volume itself");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_that_grew_or_was_partitioned_is_opened_anew() {
    let liar = Liar::start(Door::Open, Lie::Truth).await;
    liar.scene().unit = bare_volume(2048);
    let export = liar.export(PATIENCE);
    root_is_there(&export, "as it was made").await;
    let before = export.unit_bytes().await.expect("its size");
    liar.scene().unit = bare_volume(4096);
    root_is_there(&export, "grown").await;
    assert_eq!(export.unit_bytes().await.expect("its size"), before * 2);
    liar.scene().unit = partitioned(&bare_volume(2048));
    root_is_there(&export, "partitioned").await;
    liar.scene().unit = vec![0; 1 << 20];
    let error = export.stat(&ObjectPath::root()).await.expect_err("nothing is there");
    assert!(error.to_string().contains("nothing that is known"), "{error}");
    liar.scene().unit = bare_volume(2048);
    root_is_there(&export, "made anew").await;
}
