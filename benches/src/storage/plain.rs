//! The plainest server of ranges: a thread a connection, a file's bytes through one buffer. What the gateway is held against.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Bytes of one read and one write.
const BUFFER_BYTES: usize = 256 << 10;

/// Serves ranges of one file until the process ends; its address.
///
/// # Errors
/// No port is free.
pub(super) fn serve(path: &Path) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let (address, path) = (listener.local_addr()?, path.to_owned());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let path = path.clone();
            // A client that leaves ends its thread.
            std::thread::spawn(move || drop(connection(stream, path)));
        }
    });
    Ok(address)
}

fn connection(stream: TcpStream, path: PathBuf) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let file = std::fs::File::open(path)?;
    let (mut lines, mut out) = (BufReader::new(stream.try_clone()?), stream);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (mut start, mut end, mut line) = (0u64, 0u64, String::new());
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim().is_empty() {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some((first, last)) = lower.trim().strip_prefix("range: bytes=").and_then(|r| r.split_once('-')) {
                (start, end) = (first.parse().unwrap_or(0), last.parse().unwrap_or(0) + 1);
            }
        }
        write!(out, "HTTP/1.1 206 Partial Content\r\ncontent-length: {}\r\n\r\n", end - start)?;
        while start < end {
            let want = usize::try_from(end - start).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
            file.read_exact_at(&mut buffer[..want], start)?;
            out.write_all(&buffer[..want])?;
            start += want as u64;
        }
    }
}
