//! Port numbers for programs that must be told one: each is handed out once on this machine, and never by the system itself.
//!
//! A port that was bound to 0, looked at and let go may be anybody's by the time a program binds it: the system gives the
//! same numbers to whoever connects. These lie below those, and a lock on a file per port keeps other tests' processes away.
//! Test crates that may not depend on this one take in this file by its path.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Mutex;

/// The lowest port that is handed out: known services lie below it.
const FIRST: u16 = 20_000;
/// Where the system begins to give out ports by itself, if it doesn't say.
const SYSTEM_FIRST: u16 = 32_768;
/// Fewer ports than this below the system's are too few to choose from.
const COUNT_MIN: u16 = 1_000;

/// What this process was given. Locks last as long as the process: a port that served once isn't served again by another test
/// whose client may still be around.
static HELD: Mutex<Vec<(u16, File)>> = Mutex::new(Vec::new());

/// A port on loopback that nobody listens at, and that no other call, of whichever test process, answers.
///
/// # Panics
/// There is none, or no place for locks.
#[must_use]
pub fn port() -> u16 {
    let directory = std::env::temp_dir().join("inglenook-test-ports");
    std::fs::create_dir_all(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    // Tests of several people share it. Whoever didn't make it can't change it, and needn't.
    let _ = std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o1777));
    let told = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let (first, end) = range(&told);
    let count = u32::from(end - first);
    // Processes begin at different places, so that they seldom try each other's ports.
    let begin = std::process::id().wrapping_mul(61) % count;
    let mut held = HELD.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for step in 0..count {
        let Ok(offset) = u16::try_from((begin + step) % count) else { continue };
        let port = first + offset;
        if held.iter().any(|(other, _)| *other == port) {
            continue;
        }
        if let Some(lock) = lock(&directory, port)
            && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
        {
            held.push((port, lock));
            return port;
        }
    }
    panic!("no port from {first} to {end} is free");
}

/// Ports to choose from: from the first up to, but without, the second.
fn range(told: &str) -> (u16, u16) {
    let system = told.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(SYSTEM_FIRST);
    // A system that gives out nearly all ports leaves none of its own: then the lock and the look must do.
    if system >= FIRST + COUNT_MIN { (FIRST, system) } else { (FIRST, SYSTEM_FIRST) }
}

/// The right to a port; none if another process has it, or the file is another user's.
fn lock(directory: &Path, port: u16) -> Option<File> {
    let file = File::options().create(true).truncate(false).write(true).open(directory.join(port.to_string())).ok()?;
    file.try_lock().ok().map(|()| file)
}

#[cfg(test)]
mod tests {
    use super::{FIRST, HELD, lock, port, range};

    #[test]
    fn each_is_handed_out_once_and_kept_from_others() {
        let (a, b) = (port(), port());
        assert_ne!(a, b);
        assert!(a >= FIRST && b >= FIRST);
        // What another process would find.
        let directory = std::env::temp_dir().join("inglenook-test-ports");
        assert!(lock(&directory, a).is_none(), "its lock is held");
        assert!(HELD.lock().unwrap().iter().any(|(held, _)| *held == a));
        std::net::TcpListener::bind(("127.0.0.1", a)).expect("nobody listens there");
    }

    #[test]
    fn they_lie_below_those_that_the_system_gives_out() {
        assert_eq!(range("32768\t60999\n"), (20_000, 32_768));
        assert_eq!(range("49152 65535"), (20_000, 49_152));
        for told in ["", "what", "1024 65535", "20500 60999"] {
            assert_eq!(range(told), (20_000, 32_768), "{told}");
        }
    }
}
