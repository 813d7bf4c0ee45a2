//! Certificates for hosts: an authority made for one world, and a pair per host that names its address.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use ingle_daemon::config::TlsConfig;

/// Days for which they are good.
const DAYS: &str = "2";

/// An authority and what it signed, in a folder.
#[derive(Debug)]
pub(crate) struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes the authority.
    ///
    /// # Errors
    /// openssl isn't there: says so.
    pub(crate) fn make(folder: PathBuf) -> Result<Self, String> {
        let version = Command::new("openssl").arg("version").output();
        version.map_err(|error| format!("no openssl (Debian: openssl): {error}"))?;
        std::fs::create_dir_all(&folder).expect("room for certificates");
        let made = Self { folder };
        made.openssl(&[
            &["req", "-x509"][..],
            &KEY,
            &["-days", DAYS, "-subj", "/CN=authority of a test", "-keyout", "ca.key", "-out", "ca.pem"],
            &["-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=critical,keyCertSign"],
        ]);
        Ok(made)
    }

    /// Makes a host's pair, good for serving and for calling.
    pub(crate) fn host(&self, name: &str, address: IpAddr) {
        let (key, request, pem) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let extensions = self.folder.join(format!("{name}.ext"));
        let text = format!(
            "subjectAltName=DNS:{name},IP:127.0.0.1,IP:{address}\nextendedKeyUsage=serverAuth,clientAuth\n\
             basicConstraints=CA:false\n"
        );
        std::fs::write(&extensions, text).expect("room for certificates");
        let subject = format!("/CN={name}");
        self.openssl(&[&["req"][..], &KEY, &["-subj", &subject, "-keyout", &key, "-out", &request]]);
        let extensions = extensions.to_string_lossy();
        self.openssl(&[
            &["x509", "-req", "-in", &request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"][..],
            &["-days", DAYS, "-extfile", &extensions, "-out", &pem],
        ]);
    }

    /// A file: `ca.pem`, or a host's `NAME.pem` and `NAME.key`.
    pub(crate) fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    /// As a daemon's or a client's settings take a host's.
    pub(crate) fn tls(&self, name: &str) -> TlsConfig {
        let path = |file: &str| Some(self.path(file));
        TlsConfig { ca: path("ca.pem"), cert: path(&format!("{name}.pem")), key: path(&format!("{name}.key")) }
    }

    /// The same as a section of TOML.
    pub(crate) fn section(&self, name: &str) -> String {
        let at = |file: &str| self.path(file).display().to_string();
        let (ca, cert, key) = (at("ca.pem"), at(&format!("{name}.pem")), at(&format!("{name}.key")));
        format!("[tls]\nca = '{ca}'\ncert = '{cert}'\nkey = '{key}'\n")
    }

    fn openssl(&self, arguments: &[&[&str]]) {
        let made = Command::new("openssl").current_dir::<&Path>(&self.folder).args(arguments.concat()).output();
        let made = made.expect("it was there");
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "openssl {}: {said}", arguments.concat().join(" "));
    }
}

/// A new key.
const KEY: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
