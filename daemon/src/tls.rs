//! Transport security from static PEM files, over the one provider of cryptography that we link.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tonic::transport::{Certificate, ClientTlsConfig, Identity, ServerTlsConfig};

use crate::config::TlsConfig;

/// Largest PEM file that is read, in bytes.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// TLS files that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or holds something else.
    #[error("{setting} {path}: {reason}", path = .path.display())]
    File {
        /// `tls.ca`, `tls.cert` or `tls.key`.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// One of the files is missing from the settings.
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
}

impl TlsError {
    /// Never: files don't mend themselves.
    #[must_use]
    pub const fn retryable(&self) -> bool {
        false
    }
}

/// Makes aws-lc-rs the process's provider. Call it first in `main`; calling it again changes nothing.
pub fn install_provider() {
    // It fails only if one is installed already, and then it is this one: no other is linked (tests/provider.rs).
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// TLS for our listener: `None` without `tls.cert`. With `tls.ca` every client must show a certificate signed by it.
///
/// # Errors
/// [`TlsError`] names the setting and the file.
pub fn server_tls(config: &TlsConfig) -> Result<Option<ServerTlsConfig>, TlsError> {
    config.check()?;
    let Some(identity) = identity(config)? else { return Ok(None) };
    let mut tls = ServerTlsConfig::new().identity(identity).timeout(std::time::Duration::from_secs(10));
    if let Some(ca) = &config.ca {
        tls = tls.client_ca_root(Certificate::from_pem(read_certificates("tls.ca", ca)?)).client_auth_optional(false);
    }
    Ok(Some(tls))
}

/// TLS for our connections: `None` without `tls.ca`. Our certificate is shown if there is one.
///
/// # Errors
/// [`TlsError`] names the setting and the file.
pub fn client_tls(config: &TlsConfig) -> Result<Option<ClientTlsConfig>, TlsError> {
    config.check()?;
    let Some(ca) = &config.ca else { return Ok(None) };
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read_certificates("tls.ca", ca)?))
        .timeout(std::time::Duration::from_secs(3));
    if let Some(identity) = identity(config)? {
        tls = tls.identity(identity);
    }
    Ok(Some(tls))
}

/// The same for a listener that isn't gRPC's: HTTP/1.1 is spoken behind it.
///
/// # Errors
/// [`TlsError`] names the setting and the file, or says what rustls has against them.
pub fn server_config(config: &TlsConfig) -> Result<Option<Arc<rustls::ServerConfig>>, TlsError> {
    config.check()?;
    let Some((chain, key)) = chain_and_key(config)? else { return Ok(None) };
    let builder = rustls::ServerConfig::builder();
    let builder = match &config.ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots(ca)?)).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| refused("tls.ca", ca, &error))?)
        }
    };
    let mut tls = builder.with_single_cert(chain, key).map_err(|error| pair_refused(config, &error))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(tls)))
}

/// The same for our connections that aren't gRPC's.
///
/// # Errors
/// As [`server_config`].
pub fn client_config(config: &TlsConfig) -> Result<Option<Arc<rustls::ClientConfig>>, TlsError> {
    config.check()?;
    let Some(ca) = &config.ca else { return Ok(None) };
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots(ca)?);
    let mut tls = match chain_and_key(config)? {
        Some((chain, key)) => {
            builder.with_client_auth_cert(chain, key).map_err(|error| pair_refused(config, &error))?
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(Arc::new(tls)))
}

fn refused(setting: &'static str, path: &Path, error: &dyn std::fmt::Display) -> TlsError {
    TlsError::File { setting, path: path.to_owned(), reason: error.to_string() }
}

fn pair_refused(config: &TlsConfig, error: &rustls::Error) -> TlsError {
    refused("tls.cert", config.cert.as_deref().unwrap_or(Path::new("")), error)
}

fn roots(ca: &Path) -> Result<rustls::RootCertStore, TlsError> {
    let pem = read_certificates("tls.ca", ca)?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| refused("tls.ca", ca, &error))?;
        roots.add(certificate).map_err(|error| refused("tls.ca", ca, &error))?;
    }
    Ok(roots)
}

type ChainAndKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn chain_and_key(config: &TlsConfig) -> Result<Option<ChainAndKey>, TlsError> {
    let (Some(cert), Some(key)) = (&config.cert, &config.key) else { return Ok(None) };
    let pem = read_certificates("tls.cert", cert)?;
    let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| refused("tls.cert", cert, &error))?;
    let key_pem = read("tls.key", key)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| refused("tls.key", key, &error))?;
    Ok(Some((chain, key)))
}

fn identity(config: &TlsConfig) -> Result<Option<Identity>, TlsError> {
    let (Some(cert), Some(key)) = (&config.cert, &config.key) else { return Ok(None) };
    let chain = read_certificates("tls.cert", cert)?;
    let key_pem = read("tls.key", key)?;
    PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| TlsError::File {
        setting: "tls.key",
        path: key.clone(),
        reason: format!("holds no private key in PEM form: {error}"),
    })?;
    Ok(Some(Identity::from_pem(chain, key_pem)))
}

fn read_certificates(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let pem = read(setting, path)?;
    let fail = |reason: String| TlsError::File { setting, path: path.to_owned(), reason };
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        certificate.map_err(|error| fail(format!("is malformed: {error}")))?;
        count += 1;
    }
    if count == 0 {
        return Err(fail("holds no certificate in PEM form".into()));
    }
    Ok(pem)
}

fn read(setting: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let fail = |reason: String| TlsError::File { setting, path: path.to_owned(), reason };
    let size = std::fs::metadata(path).map_err(|error| fail(format!("can't be read: {error}")))?.len();
    if size > PEM_BYTES_MAX {
        return Err(fail(format!("is {size} bytes long; PEM files are at most {PEM_BYTES_MAX}")));
    }
    std::fs::read(path).map_err(|error| fail(format!("can't be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_files_are_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("cert.pem");
        let config = TlsConfig { ca: Some(path.clone()), cert: Some(path.clone()), key: Some(path.clone()) };
        let error = server_tls(&config).expect_err("no such file").to_string();
        assert!(error.contains("tls.cert") && error.contains("cert.pem"), "{error}");
        std::fs::write(&path, "not PEM").expect("room");
        let error = client_tls(&config).expect_err("no certificate").to_string();
        assert!(error.contains("tls.ca") && error.contains("no certificate"), "{error}");
        assert!(server_tls(&TlsConfig::default()).expect("nothing set").is_none());
        assert!(client_tls(&TlsConfig::default()).expect("nothing set").is_none());
    }
}
