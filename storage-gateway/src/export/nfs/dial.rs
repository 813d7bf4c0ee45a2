//! Opening TCP connections to a NAS: names resolved, a source port below 1024 where this process may have one.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

/// Longest that a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Source ports that servers without `insecure` accept, and that the system's own clients use too.
const PRIVILEGED: std::ops::RangeInclusive<u16> = 665..=1023;
/// Source ports tried before giving up: enough to get past those in use.
const TRIES_MAX: usize = 64;

/// An open connection.
pub(crate) struct Dialed {
    /// The stream, with Nagle's algorithm off.
    pub(crate) stream: TcpStream,
    /// Whether its source port is below 1024.
    pub(crate) privileged: bool,
}

/// Connects to the first address of `host` that answers.
pub(crate) async fn dial(host: &str, port: u16) -> Result<Dialed, String> {
    let whole = async {
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
            .await
            .map_err(|error| format!("the host name {host} can't be resolved: {error}"))?
            .collect();
        let mut last = format!("the host name {host} has no address");
        for address in addresses {
            match to_address(address).await {
                Ok(dialed) => return Ok(dialed),
                Err(error) => last = format!("no connection to {address}: {error}"),
            }
        }
        Err(last)
    };
    tokio::time::timeout(CONNECT_MAX, whole)
        .await
        .unwrap_or_else(|_| Err(format!("no connection to {host} port {port} within {} s", CONNECT_MAX.as_secs())))
}

async fn to_address(address: SocketAddr) -> std::io::Result<Dialed> {
    let first = fastrand::u16(PRIVILEGED);
    for step in 0..TRIES_MAX {
        let span = PRIVILEGED.end() - PRIVILEGED.start() + 1;
        let step = u16::try_from(step).expect("TRIES_MAX is small");
        let port = PRIVILEGED.start() + (first - PRIVILEGED.start() + step) % span;
        match from_port(address, port).await {
            Ok(stream) => return finish(stream),
            // In use, or still closing towards this very server: the next one.
            Err(error) if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
            // Not ours to have: any port then, and the server decides.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => break,
            Err(error) => return Err(error),
        }
    }
    finish(TcpStream::connect(address).await?)
}

async fn from_port(address: SocketAddr, port: u16) -> std::io::Result<TcpStream> {
    let (socket, any) = match address.ip() {
        IpAddr::V4(_) => (TcpSocket::new_v4()?, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        IpAddr::V6(_) => (TcpSocket::new_v6()?, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(any, port))?;
    socket.connect(address).await
}

fn finish(stream: TcpStream) -> std::io::Result<Dialed> {
    stream.set_nodelay(true)?;
    let privileged = stream.local_addr()?.port() < 1024;
    Ok(Dialed { stream, privileged })
}
