//! Hosts of their own for real processes: network namespaces on one bridge, each with an address, whose cables can be pulled.
//!
//! Nothing of it touches the network of the machine: the bridge lies in a namespace too, and so does the test
//! ([`Hosts::inside`]), which is one more host beside them.

use std::ffi::OsString;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// What the names of all namespaces of tests begin with; the process that made them follows.
const PREFIX: &str = "ingle-test-";
/// Most hosts on a bridge.
pub const HOSTS_MAX: u8 = 100;
/// Sets made by this process.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Some hosts and the bridge between them. Dropping it ends what still runs on them, and removes them.
#[derive(Debug)]
pub struct Hosts {
    hub: String,
    hosts: Vec<Host>,
}

/// One of them.
#[derive(Debug, Clone)]
pub struct Host {
    namespace: String,
    /// Its cable's other end, in the hub.
    hub: String,
    port: String,
    address: Ipv4Addr,
}

impl Hosts {
    /// Makes so many, 1 to [`HOSTS_MAX`].
    ///
    /// # Errors
    /// It can't be done here: says what is missing. Tests print that and skip.
    pub fn make(count: u8) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("hosts of their own (network namespaces) need root".to_owned());
        }
        if !(1..=HOSTS_MAX).contains(&count) {
            return Err(format!("{count} hosts: expected 1 to {HOSTS_MAX}"));
        }
        for program in ["ip", "nsenter"] {
            if Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
                return Err(format!("no {program} (Debian: iproute2 util-linux)"));
            }
        }
        // `ip` makes a mount of the place of namespaces the first time: two at once get in each other's way.
        let lock = std::env::temp_dir().join("inglenook-test-hosts");
        let one_at_a_time = File::create(&lock).and_then(|file| file.lock().map(|()| file));
        let _one_at_a_time = one_at_a_time.map_err(|error| format!("{}: {error}", lock.display()))?;
        sweep();
        let set = format!("{PREFIX}{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let hub = format!("{set}-hub");
        // From here on dropping it removes what was made, also halfway.
        ip(&["netns", "add", &hub])?;
        let mut hosts = Self { hub: hub.clone(), hosts: Vec::new() };
        ip(&["-n", &hub, "link", "set", "lo", "up"])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "addr", "add", &format!("{}/24", Self::hub_address()), "dev", "br0"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for number in 1..=count {
            let namespace = format!("{set}-{number}");
            let (port, address) = (format!("v{number}"), Ipv4Addr::new(10, 77, 0, 10 + number));
            ip(&["netns", "add", &namespace])?;
            hosts.hosts.push(Host { namespace: namespace.clone(), hub: hub.clone(), port: port.clone(), address });
            ip(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
            ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
            ip(&["-n", &namespace, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
            ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        Ok(hosts)
    }

    /// Where whoever runs [`Hosts::inside`] is.
    #[must_use]
    pub const fn hub_address() -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, 1)
    }

    /// A host, counted from 0.
    ///
    /// # Panics
    /// There are fewer.
    #[must_use]
    pub fn host(&self, at: usize) -> &Host {
        &self.hosts[at]
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter()
    }

    /// Does something on a thread that sees the hosts' network, and whose own threads do. A panic goes on here.
    ///
    /// # Panics
    /// The thread can't move there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let link = File::open(place(&self.hub)).expect("the namespace is there as long as this");
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                let moved = move_into_link_name_space(link.as_fd(), Some(LinkNameSpaceType::Network));
                moved.expect("root may move a thread");
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for namespace in self.hosts.iter().map(|host| &host.namespace).chain([&self.hub]) {
            remove(namespace);
        }
    }
}

impl Host {
    /// Its address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.address.into()
    }

    /// A port of it.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.address, port).into()
    }

    /// What to start so that a program runs on it: the process started becomes the program.
    #[must_use]
    pub fn start(&self, program: &Path, arguments: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
        let mut all = vec![format!("--net={}", place(&self.namespace).display()).into(), program.into()];
        all.extend(arguments);
        (PathBuf::from("nsenter"), all)
    }

    /// A program on it.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let (nsenter, arguments) = self.start(program, Vec::new());
        let mut command = Command::new(nsenter);
        command.args(arguments);
        command
    }

    /// Pulls its cable: it runs on, and hears and reaches nobody.
    ///
    /// # Panics
    /// Its cable is gone.
    pub fn cut(&self) {
        ip(&["-n", &self.hub, "link", "set", &self.port, "down"]).expect("it has a cable");
    }

    /// Puts its cable back.
    ///
    /// # Panics
    /// Its cable is gone.
    pub fn heal(&self) {
        ip(&["-n", &self.hub, "link", "set", &self.port, "up"]).expect("it has a cable");
    }
}

fn place(namespace: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace)
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let done = Command::new("ip").args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|error| format!("no ip (Debian: iproute2): {error}"))?;
    if done.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&done.stderr).trim()))
}

/// Ends what runs in a namespace of ours, and removes it.
fn remove(namespace: &str) {
    let listed = Command::new("ip").args(["netns", "pids", namespace]).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for pid in listed.split_whitespace().filter_map(|text| text.parse().ok()).filter(|pid| *pid != own) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    if let Err(error) = ip(&["netns", "del", namespace]) {
        eprintln!("{error}");
    }
}

/// Removes what tests left that were killed themselves: whose process is there no more.
fn sweep() {
    let Ok(found) = std::fs::read_dir("/run/netns") else { return };
    for name in found.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        let maker = rest.split('-').next().unwrap_or_default();
        if maker.parse::<u32>().is_ok() && !Path::new("/proc").join(maker).exists() {
            remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use super::Hosts;

    #[test]
    fn hosts_reach_each_other_until_a_cable_is_pulled_and_nothing_stays_behind() {
        let hosts = match Hosts::make(2) {
            Ok(hosts) => hosts,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let host = hosts.host(0).clone();
        let namespaces: Vec<_> = hosts.iter().map(|host| super::place(&host.namespace)).collect();
        let output = host.command("cat".as_ref()).arg("/proc/net/fib_trie").output().expect("it runs there");
        assert!(String::from_utf8_lossy(&output.stdout).contains("10.77.0.11"), "{output:?}");
        hosts.inside(|| {
            let listener = TcpListener::bind((Hosts::hub_address(), 0)).expect("our own address");
            let to = listener.local_addr().expect("bound");
            let talk =
                format!("exec 3<>/dev/tcp/{}/{}; echo hello >&3; read answer <&3; echo $answer", to.ip(), to.port());
            let mut there = host.command("bash".as_ref());
            let child = there.args(["-c", &talk]).stdout(std::process::Stdio::piped()).spawn().expect("it runs there");
            let (mut stream, from) = listener.accept().expect("it comes");
            assert_eq!(from.ip(), host.ip());
            let mut heard = [0; 6];
            stream.read_exact(&mut heard).expect("its words");
            stream.write_all(b"and you\n").expect("it listens");
            let said = child.wait_with_output().expect("it ends").stdout;
            assert_eq!((&heard, said.as_slice()), (b"hello\n", b"and you\n".as_slice()));
            host.cut();
            let shut = TcpStream::connect_timeout(&host.at(9), Duration::from_millis(200)).expect_err("nobody there");
            assert_ne!(shut.kind(), std::io::ErrorKind::ConnectionRefused, "no answer at all");
            host.heal();
            // Refused by the host itself: it is there again.
            let mut refused = None;
            for _ in 0..100 {
                let error =
                    TcpStream::connect_timeout(&host.at(9), Duration::from_secs(1)).expect_err("nobody listens");
                refused = Some(error.kind());
                if refused == Some(std::io::ErrorKind::ConnectionRefused) {
                    break;
                }
            }
            assert_eq!(refused, Some(std::io::ErrorKind::ConnectionRefused));
        });
        drop(hosts);
        assert!(namespaces.iter().all(|namespace| !namespace.exists()), "{namespaces:?}");
    }

    #[test]
    fn a_panic_inside_is_one_outside_and_removes_the_hosts() {
        let hosts = match Hosts::make(1) {
            Ok(hosts) => hosts,
            Err(why) => return eprintln!("skipped: {why}"),
        };
        let namespace = super::place(&hosts.host(0).namespace);
        assert!(namespace.exists());
        let caught =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || hosts.inside::<()>(|| panic!("as planned"))));
        assert!(caught.is_err() && !namespace.exists());
    }
}
