//! Real NAS servers for tests: NFS-Ganesha on loopback, started and ended by the test that needs it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::hosts::Host;
use crate::ports::port;

/// Longest that the server may take to answer.
const READY_MAX: Duration = Duration::from_secs(20);

/// Debian's Ganesha gives up without rpcbind; a preloaded library says that registering went well.
const NO_RPCBIND: &str = "int rpcb_set(const unsigned p, const unsigned v, const void *n, const void *a) { return 1; }\n\
                          int rpcb_unset(const unsigned p, const unsigned v, const void *n) { return 1; }\n";

/// NFS-Ganesha serving a directory over NFS version 3, root not squashed. Dropping it kills it.
pub struct Ganesha {
    child: Child,
    home: TempDir,
    directory: PathBuf,
    ports: (u16, u16),
    caching: bool,
    /// Where it runs, if not on this machine's loopback.
    host: Option<Host>,
}

impl Ganesha {
    /// Starts it. It keeps no attributes, for tests change files behind its back.
    ///
    /// # Errors
    /// It can't run here: says what is missing. Tests print that and skip.
    pub fn start(directory: &Path) -> Result<Self, String> {
        Self::begin(directory, false, None)
    }

    /// Starts it as on a NAS that holds what is in use in memory: attributes for a minute, of up to a million files.
    ///
    /// # Errors
    /// It can't run here: says what is missing.
    pub fn start_caching(directory: &Path) -> Result<Self, String> {
        Self::begin(directory, true, None)
    }

    /// Starts it on a host of its own. To be called where that host is reached.
    ///
    /// # Errors
    /// It can't run here: says what is missing.
    pub fn start_on(host: &Host, directory: &Path) -> Result<Self, String> {
        Self::begin(directory, false, Some(host.clone()))
    }

    fn begin(directory: &Path, caching: bool, host: Option<Host>) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("NFS-Ganesha needs root".to_owned());
        }
        let home = tempfile::tempdir().map_err(|error| format!("no tempdir: {error}"))?;
        let (source, library) = (home.path().join("norpcbind.c"), home.path().join("norpcbind.so"));
        std::fs::write(&source, NO_RPCBIND).map_err(|error| format!("{}: {error}", source.display()))?;
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .status()
            .map_err(|error| format!("no C compiler (Debian: gcc): {error}"))?;
        if !compiled.success() {
            return Err(format!("the C compiler failed: {compiled}"));
        }
        // Ganesha keeps sockets there, and doesn't make the directory itself.
        std::fs::create_dir_all("/var/run/ganesha").map_err(|error| format!("/var/run/ganesha: {error}"))?;
        let ports = (port(), port());
        let child = launch(home.path(), directory, ports, caching, host.as_ref())?;
        let mut server = Self { child, home, directory: directory.to_owned(), ports, caching, host };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// The URL by which our client reaches the directory, as the user of this process.
    #[must_use]
    pub fn url(&self) -> String {
        let (nfs, mount) = self.ports;
        format!("nfs://{}{}?nfsport={nfs}&mountport={mount}", address(self.host.as_ref()), self.directory.display())
    }

    /// The ports of NFS and of its mount service.
    #[must_use]
    pub fn ports(&self) -> (u16, u16) {
        self.ports
    }

    /// Kills it as a power failure would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again, on the same ports with the same directory.
    ///
    /// # Errors
    /// It didn't come up: says why.
    pub fn restart(&mut self) -> Result<(), String> {
        self.kill();
        self.child = launch(self.home.path(), &self.directory, self.ports, self.caching, self.host.as_ref())?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            let address = address(self.host.as_ref());
            let answers = |port| std::net::TcpStream::connect((address, port)).is_ok();
            if answers(self.ports.0) && answers(self.ports.1) {
                return Ok(());
            }
            let ended = self.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > READY_MAX {
                let log = std::fs::read_to_string(self.home.path().join("log")).unwrap_or_default();
                return Err(format!("NFS-Ganesha isn't ready ({ended:?}); its log:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        self.kill();
    }
}

fn address(host: Option<&Host>) -> IpAddr {
    host.map_or(Ipv4Addr::LOCALHOST.into(), Host::ip)
}

fn launch(
    home: &Path,
    directory: &Path,
    (nfs, mount): (u16, u16),
    caching: bool,
    host: Option<&Host>,
) -> Result<Child, String> {
    let config = home.join("ganesha.conf");
    let attributes_s = if caching { 60 } else { 0 };
    let text = format!(
        "NFS_CORE_PARAM {{ Protocols = 3; NFS_Port = {nfs}; MNT_Port = {mount}; Bind_addr = {address};
           Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = false; }}
         MDCACHE {{ Entries_HWMark = 1000000; }}
         NFSv4 {{ Graceless = true; RecoveryBackend = fs; }}
         EXPORT {{ Export_Id = 1; Path = {}; Pseudo = /export; Protocols = 3; Transports = TCP; Access_Type = RW;
           Squash = No_Root_Squash; SecType = sys; Attr_Expiration_Time = {attributes_s}; MaxRead = 1048576; MaxWrite = 1048576;
           FSAL {{ Name = VFS; }} }}
         LOG {{ Default_Log_Level = EVENT; }}\n",
        directory.display(),
        address = address(host),
    );
    std::fs::write(&config, text).map_err(|error| format!("{}: {error}", config.display()))?;
    let program = Path::new("ganesha.nfsd");
    host.map_or_else(|| Command::new(program), |host| host.command(program))
        .env("LD_PRELOAD", home.join("norpcbind.so"))
        .arg("-F")
        .args(["-f".as_ref(), config.as_os_str()])
        .args(["-L".as_ref(), home.join("log").as_os_str()])
        .args(["-p".as_ref(), home.join("pid").as_os_str()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("no ganesha.nfsd (Debian: nfs-ganesha nfs-ganesha-vfs): {error}"))
}
