//! From an address to a session that stands: TCP, login with at most a few redirections, and who else is there if the
//! target isn't.

use std::time::Duration;

use ingle_iscsi::chap::{self, Secret};
use ingle_iscsi::discovery::{self, Discovery};
use ingle_iscsi::login::{self, Login, Step};
use ingle_iscsi::pdu::{self, HEADER};
use ingle_iscsi::{Agreed, LoginError, Wish};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::url::{Account, IscsiOptions, IscsiUrl, split_port};
use crate::export::ExportError;

/// Longest that a connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How often a target may send us elsewhere.
const MOVES_MAX: usize = 3;
/// Targets that an error names at most.
const NAMED_MAX: usize = 12;
/// Longest password file that is read.
const PASSWORD_BYTES_MAX: u64 = 4096;

/// Who we are to a target, the same over all sessions: a new one takes the place of the one before.
#[derive(Debug, Clone)]
pub(crate) struct Dialer {
    pub(crate) url: IscsiUrl,
    pub(crate) options: IscsiOptions,
    isid: [u8; 6],
}

impl Dialer {
    pub(crate) fn new(url: IscsiUrl, options: IscsiOptions) -> Self {
        // The format "random" (RFC 7143, section 11.12.5), and no qualifier.
        let [a, b, c, _] = fastrand::u32(..).to_be_bytes();
        Self { url, options, isid: [0x80, a, b, c, 0, 0] }
    }

    /// Logs in to the target.
    pub(crate) async fn dial(&self) -> Result<(TcpStream, Agreed), ExportError> {
        let (mut host, mut port) = (self.url.host.clone(), self.url.port);
        for _ in 0..=MOVES_MAX {
            let mut stream = self.connect(&host, port).await?;
            match self.login(&mut stream, Some(self.url.target.clone())).await? {
                Ok(agreed) => return Ok((stream, agreed)),
                Err(LoginError::Moved(address)) => {
                    let place = address.split(',').next().unwrap_or_default();
                    let (to, at) = split_port(place).map_err(|why| self.broken(format!("it has moved: {why}")))?;
                    (host, port) = (to, at.unwrap_or(self.url.port));
                }
                Err(LoginError::NoSuchTarget) => return Err(self.missing(&host, port).await),
                Err(error) => return Err(self.about(error)),
            }
        }
        Err(self.broken(format!("it was sent elsewhere more than {MOVES_MAX} times")))
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, ExportError> {
        let refused = |why: String| ExportError::Unavailable(format!("{}: {why}", self.url.shown));
        let opened = tokio::time::timeout(CONNECT_MAX, TcpStream::connect((host, port))).await;
        let stream = opened
            .map_err(|_| refused(format!("no connection to {host}:{port} within {} s", CONNECT_MAX.as_secs())))?
            .map_err(|error| refused(format!("no connection to {host}:{port}: {error}")))?;
        stream.set_nodelay(true).map_err(|error| refused(error.to_string()))?;
        Ok(stream)
    }

    async fn login(
        &self,
        stream: &mut TcpStream,
        target: Option<String>,
    ) -> Result<Result<Agreed, LoginError>, ExportError> {
        let mut challenge = [0; 17];
        // What the target must answer has to be new to it.
        random(&mut challenge).map_err(|error| self.broken(format!("no random numbers: {error}")))?;
        let normal = target.is_some();
        let wish = Wish {
            initiator: self.options.initiator.clone(),
            isid: self.isid,
            target,
            account: self.account(self.options.account.as_ref()).await?,
            mutual: self.account(self.options.mutual.as_ref()).await?,
            challenge: (challenge[16], *challenge.first_chunk().expect("17 bytes")),
            header_digest: normal && self.options.header_digest,
            data_digest: normal && self.options.data_digest,
        };
        let (mut login, mut request) = Login::begin(wish);
        loop {
            self.send(stream, &request).await?;
            let header = self.header(stream).await?;
            let length = match login::segment(&header) {
                Ok(length) => length,
                Err(error) => return Ok(Err(error)),
            };
            let data = self.rest(stream, length).await?;
            match login.answer(&header, &data[..pdu::data_length(&header)]) {
                Ok(Step::Send(next)) => request = next,
                Ok(Step::Done(agreed)) => return Ok(Ok(agreed)),
                Err(error) => return Ok(Err(error)),
            }
        }
    }

    /// Which targets there are instead.
    async fn missing(&self, host: &str, port: u16) -> ExportError {
        let target = &self.url.target;
        let words = match self.discover(host, port).await {
            Ok(names) if names.is_empty() => "none to us; may this initiator see it?".to_owned(),
            Ok(names) => {
                let more = names.len().saturating_sub(NAMED_MAX);
                let mut words = names.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join(", ");
                if more > 0 {
                    words.push_str(&format!(" and {more} more"));
                }
                words
            }
            Err(why) => format!("nothing that it would name ({why})"),
        };
        ExportError::NotFound(format!("{}: target {target}; {host}:{port} offers {words}", self.url.shown))
    }

    async fn discover(&self, host: &str, port: u16) -> Result<Vec<String>, ExportError> {
        let mut stream = self.connect(host, port).await?;
        let agreed = self.login(&mut stream, None).await?.map_err(|error| self.about(error))?;
        let (mut discovery, mut request) = Discovery::begin(&agreed);
        loop {
            self.send(&mut stream, &request).await?;
            let header = self.header(&mut stream).await?;
            let length = discovery::segment(&header).map_err(|error| self.broken(error.to_string()))?;
            let data = self.rest(&mut stream, length).await?;
            let step = discovery.answer(&header, &data[..pdu::data_length(&header)]);
            match step.map_err(|error| self.broken(error.to_string()))? {
                discovery::Step::Send(next) => request = next,
                discovery::Step::Done(names) => return Ok(names),
            }
        }
    }

    async fn send(&self, stream: &mut TcpStream, bytes: &[u8]) -> Result<(), ExportError> {
        stream.write_all(bytes).await.map_err(|error| self.lost(&error.to_string()))
    }

    async fn header(&self, stream: &mut TcpStream) -> Result<[u8; HEADER], ExportError> {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.map_err(|error| self.lost(&error.to_string()))?;
        Ok(header)
    }

    /// A segment whose length was checked.
    async fn rest(&self, stream: &mut TcpStream, length: usize) -> Result<Vec<u8>, ExportError> {
        let mut data = vec![0; length];
        stream.read_exact(&mut data).await.map_err(|error| self.lost(&error.to_string()))?;
        Ok(data)
    }

    async fn account(&self, account: Option<&Account>) -> Result<Option<chap::Account>, ExportError> {
        let Some(account) = account else { return Ok(None) };
        let (path, user) = (account.password_file.clone(), account.user.clone());
        let read = tokio::task::spawn_blocking(move || {
            use std::io::Read as _;
            let mut bytes = Vec::new();
            std::fs::File::open(&path)?.take(PASSWORD_BYTES_MAX).read_to_end(&mut bytes)?;
            Ok::<_, std::io::Error>(bytes)
        });
        let path = account.password_file.display();
        let refused =
            |why: String| ExportError::Unavailable(format!("{}: password_file {path}: {why}", self.url.shown));
        let bytes =
            read.await.map_err(|ended| refused(ended.to_string()))?.map_err(|error| refused(error.to_string()))?;
        let line = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
        if line.is_empty() {
            return Err(refused("its first line, the password, is empty".to_owned()));
        }
        Ok(Some(chap::Account { user, secret: Secret::new(line) }))
    }

    fn lost(&self, why: &str) -> ExportError {
        ExportError::Unavailable(format!("{}: the connection ended during the login: {why}", self.url.shown))
    }

    pub(crate) fn broken(&self, why: String) -> ExportError {
        ExportError::Broken(format!("{}: {why}", self.url.shown))
    }

    fn about(&self, error: LoginError) -> ExportError {
        let url = &self.url.shown;
        let denied = |why: String| ExportError::Denied { path: url.clone(), by: why };
        match error {
            LoginError::WantsAccount => {
                denied(format!("its target: {error}; set exports.NAME.iscsi.user and password_file"))
            }
            LoginError::Refused(_) => {
                let user = self.options.account.as_ref().map_or("nobody", |account| account.user.as_str());
                let initiator = &self.options.initiator;
                denied(format!("its target: {error}; CHAP user {user:?}, initiator {initiator}"))
            }
            LoginError::Impostor => {
                denied(format!("us: {error}; check exports.NAME.iscsi.mutual_user and its password"))
            }
            LoginError::Later(_) => ExportError::Unavailable(format!("{url}: {error}")),
            LoginError::Disagreed(_) => ExportError::Unsupported(format!("{url}: {error}")),
            LoginError::Moved(_) | LoginError::NoSuchTarget | LoginError::Protocol(_) => self.broken(error.to_string()),
        }
    }
}

/// Unpredictable bytes, from the system.
fn random(into: &mut [u8]) -> std::io::Result<()> {
    use std::io::Read as _;
    std::fs::File::open("/dev/urandom")?.read_exact(into)
}
