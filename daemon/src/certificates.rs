//! How long certificates last: the one thing that is read out of them, told as a metric and to whoever asks.

use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};

use crate::config::TlsConfig;
use crate::metrics::Metrics;

/// Labels of a file of certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    /// `cert` or `ca`, as in the settings.
    file: &'static str,
}

/// Tells when the certificates that this process started with end. One that was renewed since counts once it is loaded.
pub(crate) fn tell(metrics: &Metrics, tls: &TlsConfig) {
    let ends = metrics.gauges(
        "certificate_expiry_timestamp_seconds",
        "When the first certificate of a file in use ends, in Unix seconds, by the setting that names it",
    );
    for (file, path) in [("cert", &tls.cert), ("ca", &tls.ca)] {
        if let Some(end) = path.as_deref().and_then(first_end) {
            ends.get_or_create(&FileLabels { file }).set(end);
        }
    }
}

/// When the first of a PEM file's certificates ends, in Unix seconds; `None` for a file without a readable one.
#[must_use]
pub fn first_end(path: &Path) -> Option<i64> {
    let pem = std::fs::read(path).ok()?;
    CertificateDer::pem_slice_iter(&pem).filter_map(|one| not_after(one.ok()?.as_ref())).min()
}

/// When the certificate of a daemon that serves gRPC at `HOST:PORT` ends, in Unix seconds; `None` without `tls.ca`. It blocks.
///
/// # Errors
/// Says why nobody could be spoken to: an ended certificate is among the reasons.
pub fn end_of_server(endpoint: &str, tls: &TlsConfig, within: Duration) -> Result<Option<i64>, String> {
    let Some(config) = crate::tls::client_config(tls).map_err(|error| error.to_string())? else { return Ok(None) };
    let mut config = rustls::ClientConfig::clone(&config);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = endpoint.split_once("://").map_or(endpoint, |(_, address)| address);
    let (host, _) = address.rsplit_once(':').ok_or("expected HOST:PORT")?;
    let name = ServerName::try_from(host.trim_start_matches('[').trim_end_matches(']').to_owned());
    let name = name.map_err(|error| format!("{host}: {error}"))?;
    let mut found = address.to_socket_addrs().map_err(|error| format!("{address}: {error}"))?;
    let found = found.next().ok_or_else(|| format!("{address}: no such host"))?;
    let begun = Instant::now();
    let talk = || -> std::io::Result<Option<i64>> {
        let mut stream = TcpStream::connect_timeout(&found, within)?;
        stream.set_read_timeout(Some(within))?;
        stream.set_write_timeout(Some(within))?;
        let mut connection = rustls::ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
        while connection.is_handshaking() {
            if connection.wants_write() {
                connection.write_tls(&mut stream)?;
            } else if connection.read_tls(&mut stream)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            } else {
                connection.process_new_packets().map_err(std::io::Error::other)?;
            }
            // A peer that sends a byte now and then takes no longer than one that sends none.
            if begun.elapsed() > within {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
        }
        Ok(connection.peer_certificates().and_then(|chain| not_after(chain.first()?.as_ref())))
    };
    talk().map_err(|error| format!("{address}: {error}"))
}

const SEQUENCE: u8 = 0x30;
const UTC_TIME: u8 = 0x17;
const GENERALISED_TIME: u8 = 0x18;
/// Of the version, which may be absent.
const CONTEXT_0: u8 = 0xa0;

/// The end of a certificate's validity: RFC 5280, 4.1. Everything before it is stepped over.
fn not_after(der: &[u8]) -> Option<i64> {
    let (certificate, _) = take(der, SEQUENCE)?;
    let (mut rest, _) = take(certificate, SEQUENCE)?;
    if rest.first() == Some(&CONTEXT_0) {
        rest = value(rest)?.2;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        rest = value(rest)?.2;
    }
    let (validity, _) = take(rest, SEQUENCE)?;
    let (_, _, after) = value(validity)?;
    let (tag, text, _) = value(after)?;
    time(tag, std::str::from_utf8(text).ok()?)
}

/// The content of a value that must have this tag, and what follows it.
fn take(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = value(der)?;
    (tag == wanted).then_some((content, rest))
}

/// Tag, content, and what follows.
fn value(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, der) = der.split_first()?;
    let (&first, der) = der.split_first()?;
    let (length, der) = match first {
        0..=0x7f => (usize::from(first), der),
        // A certificate has less than 16 MiB: three bytes of length at most.
        0x81..=0x83 => {
            let (bytes, der) = der.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), der)
        }
        _ => return None,
    };
    let (content, rest) = der.split_at_checked(length)?;
    Some((tag, content, rest))
}

fn time(tag: u8, text: &str) -> Option<i64> {
    let text = text.strip_suffix('Z').filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match (tag, text.len()) {
        (UTC_TIME, 12) => {
            let year: i64 = text[..2].parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &text[2..])
        }
        (GENERALISED_TIME, 14) => (text[..4].parse().ok()?, &text[4..]),
        _ => return None,
    };
    let number = |at: usize| rest[at..at + 2].parse::<i64>().ok();
    let (month, day, hour, minute, second) = (number(0)?, number(2)?, number(4)?, number(6)?, number(8)?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // Days since 1970 in the proleptic Gregorian calendar, counted in years that begin in March.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `openssl x509 -enddate` says of the fixtures.
    const SERVER_END: i64 = 4_948_835_046;
    const CA_END: i64 = 4_948_835_046;

    #[test]
    fn times_are_read_as_both_kinds_write_them() {
        assert_eq!(time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(UTC_TIME, "261123120000Z"), Some(1_795_435_200));
        assert_eq!(time(GENERALISED_TIME, "20500228235959Z"), Some(2_529_705_599));
        assert_eq!(time(GENERALISED_TIME, "20000229000000Z"), Some(951_782_400));
        for bad in ["", "Z", "26112312000Z", "261323120000Z", "2611231200+0Z", "261123120000"] {
            assert_eq!(time(UTC_TIME, bad), None, "{bad}");
        }
    }

    #[test]
    fn the_end_is_found_in_real_certificates_and_in_no_others() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon/tls");
        for (file, end) in [("server.pem", SERVER_END), ("ca.pem", CA_END)] {
            assert_eq!(first_end(&folder.join(file)), Some(end), "{file}");
        }
        assert_eq!(first_end(&folder.join("server.key")), None);
        let pem = std::fs::read(folder.join("server.pem")).expect("a fixture");
        let der = CertificateDer::from_pem_slice(&pem).expect("a certificate");
        for cut in 0..der.len().min(200) {
            // Whatever is cut off: an answer or none, never a panic.
            let _ = not_after(&der[..cut]);
        }
    }

    #[test]
    fn the_metric_is_there_for_files_that_are_set() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/daemon/tls");
        let metrics = Metrics::new("ingle-test");
        tell(&metrics, &TlsConfig { ca: Some(folder.join("ca.pem")), ..TlsConfig::default() });
        let text = metrics.text();
        let line = format!("ingle_certificate_expiry_timestamp_seconds{{file=\"ca\"}} {CA_END}");
        assert!(text.contains(&line) && !text.contains("file=\"cert\""), "{text}");
    }
}
