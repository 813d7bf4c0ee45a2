//! From a connection to a session: security, then the session's parameters (RFC 7143, sections 6 and 13).

use crate::chap::{self, Account, Algorithm};
use crate::pdu::build::{self, Counted};
use crate::pdu::{self, Bhs, Kind, LoginAnswer};
use crate::text::{self, Pairs, TEXT_MAX};

/// Most answers of a target until the session must stand.
const ANSWERS_MAX: usize = 24;
/// Most bytes of a login PDU's data segment (RFC 7143, section 13.12: before anything else is agreed).
pub const SEGMENT_MAX: usize = 8192;
/// Most bytes of data that one PDU may bring us: what we declare.
pub const RECEIVE_MAX: u32 = 256 * 1024;
/// Bytes of one sequence of Data-In PDUs that we ask for.
const BURST: &str = "16776192";

const SECURITY: u8 = 0;
const OPERATIONAL: u8 = 1;
const FULL: u8 = 3;

/// What is wanted of a login.
#[derive(Debug, Clone)]
pub struct Wish {
    /// Our name.
    pub initiator: String,
    /// Of the session: the same one takes the place of an older session of ours.
    pub isid: [u8; 6],
    /// The target's name; none for a session that only asks which targets there are.
    pub target: Option<String>,
    /// Whom we log in as.
    pub account: Option<Account>,
    /// Whom the target must prove to be; needs `account`.
    pub mutual: Option<Account>,
    /// The challenge to the target, unpredictable, with its identifier.
    pub challenge: (u8, [u8; 16]),
    /// Headers carry digests.
    pub header_digest: bool,
    /// Data carries digests.
    pub data_digest: bool,
}

/// What was agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Headers carry digests.
    pub header_digest: bool,
    /// Data carries digests.
    pub data_digest: bool,
    /// Number of the next command.
    pub cmd_sn: u32,
    /// The last command that the target takes now.
    pub max_cmd_sn: u32,
    /// Number of the next response.
    pub exp_stat_sn: u32,
    /// The session's handle at the target.
    pub tsih: u16,
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target is elsewhere.
    #[error("the target has moved to {0}")]
    Moved(String),
    /// Name or secret are wrong, or a target wants some and has none of us.
    #[error("the target refused the login: {0}")]
    Refused(&'static str),
    /// The portal has no such target.
    #[error("the portal has no such target")]
    NoSuchTarget,
    /// The target wants CHAP, and we have no account.
    #[error("the target wants a user and a password (CHAP)")]
    WantsAccount,
    /// The target didn't prove that it knows the secret.
    #[error("the target didn't prove who it is (mutual CHAP)")]
    Impostor,
    /// It can't now.
    #[error("the target can't take logins now: {0}")]
    Later(&'static str),
    /// It doesn't agree to what we need.
    #[error("the target doesn't agree: {0}")]
    Disagreed(String),
    /// It doesn't keep to the protocol.
    #[error("the target broke the protocol: {0}")]
    Protocol(String),
}

/// What comes next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send this, then read an answer.
    Send(Vec<u8>),
    /// The session stands.
    Done(Agreed),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The method of authentication is asked for.
    Method,
    /// The algorithm is asked for.
    Algorithm,
    /// Our response is on its way.
    Response(Algorithm),
    /// Parameters are asked for.
    Parameters,
}

/// A login that is under way: [`Login::begin`], then [`Login::answer`] until it is done.
#[derive(Debug)]
pub struct Login {
    wish: Wish,
    phase: Phase,
    tsih: u16,
    stat_sn: Option<u32>,
    answers: usize,
    /// Text of an answer that goes on.
    held: Vec<u8>,
    header_digest: bool,
    data_digest: bool,
}

/// Bytes of a login answer's data segment, with padding: what to read after its header.
///
/// # Errors
/// More than an answer may have.
pub fn segment(header: &Bhs) -> Result<usize, LoginError> {
    let length = pdu::data_length(header);
    if length > SEGMENT_MAX {
        let why = format!("an answer with {length} bytes of text, expected at most {SEGMENT_MAX}");
        return Err(LoginError::Protocol(why));
    }
    Ok(length + pdu::padding(length))
}

fn protocol<T>(why: impl Into<String>) -> Result<T, LoginError> {
    Err(LoginError::Protocol(why.into()))
}

impl Login {
    /// The first request. Nothing is asked twice: this is called once.
    #[must_use]
    pub fn begin(wish: Wish) -> (Self, Vec<u8>) {
        let mut login = Self {
            wish,
            phase: Phase::Method,
            tsih: 0,
            stat_sn: None,
            answers: 0,
            held: Vec::new(),
            header_digest: false,
            data_digest: false,
        };
        let mut text = Pairs::default();
        text.put("InitiatorName", &login.wish.initiator);
        match &login.wish.target {
            Some(target) => {
                text.put("TargetName", target);
                text.put("SessionType", "Normal");
            }
            None => text.put("SessionType", "Discovery"),
        }
        // A target that must prove itself can't do so without CHAP.
        let (method, transit) = match (&login.wish.account, &login.wish.mutual) {
            (None, _) => ("None", true),
            (Some(_), None) => ("CHAP,None", false),
            (Some(_), Some(_)) => ("CHAP", false),
        };
        text.put("AuthMethod", method);
        let first = login.request(SECURITY, transit.then_some(OPERATIONAL), text);
        (login, first)
    }

    fn request(&mut self, stage: u8, next: Option<u8>, text: Pairs) -> Vec<u8> {
        let flags = stage << 2 | next.map_or(0, |next| 0x80 | next);
        let data = text.bytes();
        let counted = Counted { tag: 1, cmd_sn: 1, exp_stat_sn: self.stat_sn.map_or(0, |sn| sn.wrapping_add(1)) };
        let mut out = build::login(flags, self.wish.isid, self.tsih, data.len(), counted).to_vec();
        out.extend_from_slice(&data);
        out.resize(out.len() + pdu::padding(data.len()), 0);
        out
    }

    /// Takes an answer: its header, and its data segment without padding.
    ///
    /// # Errors
    /// The login is over.
    pub fn answer(&mut self, header: &Bhs, data: &[u8]) -> Result<Step, LoginError> {
        self.answers += 1;
        if self.answers > ANSWERS_MAX {
            return protocol(format!("no session after {ANSWERS_MAX} answers"));
        }
        let read = pdu::read(header).map_err(|error| LoginError::Protocol(error.to_string()))?;
        let Kind::Login(answer) = read.kind else {
            return protocol("something else than an answer to our login");
        };
        if answer.tag != 1 {
            return protocol(format!("an answer to a login {} that isn't ours", answer.tag));
        }
        if answer.status.0 != 0 {
            return Err(self.refused(answer.status, data));
        }
        if self.stat_sn.is_some_and(|last| read.numbers.stat_sn != last.wrapping_add(1)) {
            return protocol("answers that aren't numbered one after the other");
        }
        self.stat_sn = Some(read.numbers.stat_sn);
        if self.held.len() + data.len() > TEXT_MAX {
            return protocol(format!("more than {TEXT_MAX} bytes of text"));
        }
        self.held.extend_from_slice(data);
        let stage = if self.phase == Phase::Parameters { OPERATIONAL } else { SECURITY };
        if answer.stage != stage {
            return protocol(format!("an answer of stage {} in stage {stage}", answer.stage));
        }
        if answer.goes_on {
            if answer.transit {
                return protocol("an answer that goes on and goes to the next stage");
            }
            return Ok(Step::Send(self.request(stage, None, Pairs::default())));
        }
        if answer.tsih != 0 {
            self.tsih = answer.tsih;
        }
        let held = std::mem::take(&mut self.held);
        let pairs = text::pairs(&held).map_err(|error| LoginError::Protocol(error.to_string()))?;
        match self.phase {
            Phase::Parameters => self.parameters(&pairs, &answer, read.numbers),
            phase => self.security(phase, &pairs, &answer),
        }
    }

    fn refused(&self, status: (u8, u8), data: &[u8]) -> LoginError {
        match status {
            (1, _) => {
                let pairs = text::pairs(data).unwrap_or_default();
                match value(&pairs, "TargetAddress") {
                    Some(address) => LoginError::Moved(address.to_owned()),
                    None => LoginError::Protocol("it has moved and doesn't say where to".to_owned()),
                }
            }
            (2, 1) if self.wish.account.is_none() => LoginError::WantsAccount,
            (2, 1) => LoginError::Refused("user and password aren't accepted"),
            (2, 2) => LoginError::Refused("this initiator may not use it"),
            (2, 3) => LoginError::NoSuchTarget,
            (2, 4) => LoginError::Refused("it was removed"),
            (2, 6) => LoginError::Later("it has too many connections"),
            (2, _) => LoginError::Protocol(format!("it found fault with our login ({:02x}{:02x})", status.0, status.1)),
            (3, 1) => LoginError::Later("the service is unavailable"),
            (3, 2) => LoginError::Later("it is out of resources"),
            (3, _) => LoginError::Later("it failed inside"),
            (class, detail) => LoginError::Protocol(format!("an unknown status ({class:02x}{detail:02x})")),
        }
    }

    fn security(&mut self, phase: Phase, pairs: &[(&str, &str)], answer: &LoginAnswer) -> Result<Step, LoginError> {
        match phase {
            Phase::Method => match value(pairs, "AuthMethod") {
                Some("CHAP") if self.wish.account.is_some() => {
                    if answer.transit {
                        return protocol("CHAP, and it goes on without");
                    }
                    self.phase = Phase::Algorithm;
                    let mut text = Pairs::default();
                    text.put("CHAP_A", Algorithm::OFFER);
                    Ok(Step::Send(self.request(SECURITY, None, text)))
                }
                Some("None") | None if self.wish.mutual.is_none() => {
                    if answer.transit {
                        return self.ask_parameters(answer);
                    }
                    Ok(Step::Send(self.request(SECURITY, Some(OPERATIONAL), Pairs::default())))
                }
                Some("None") | None => Err(LoginError::Impostor),
                Some("CHAP") => Err(LoginError::WantsAccount),
                Some(_) if self.wish.account.is_none() => Err(LoginError::WantsAccount),
                Some(other) => Err(LoginError::Disagreed(format!("AuthMethod={other}, expected CHAP or None"))),
            },
            Phase::Algorithm => self.respond(pairs),
            Phase::Response(algorithm) => {
                if let Some(mutual) = &self.wish.mutual {
                    let (identifier, challenge) = &self.wish.challenge;
                    let expected = algorithm.response(*identifier, &mutual.secret, challenge);
                    let given = value(pairs, "CHAP_R").and_then(|text| text::binary(text, chap::RESPONSE_MAX));
                    let named = value(pairs, "CHAP_N") == Some(mutual.user.as_str());
                    if !named || !given.is_some_and(|given| chap::same(&given, &expected)) {
                        return Err(LoginError::Impostor);
                    }
                }
                if answer.transit {
                    return self.ask_parameters(answer);
                }
                protocol("CHAP was answered, and it doesn't go on")
            }
            Phase::Parameters => protocol("security after the parameters"),
        }
    }

    /// The proof that we know the secret.
    fn respond(&mut self, pairs: &[(&str, &str)]) -> Result<Step, LoginError> {
        let algorithm = value(pairs, "CHAP_A")
            .and_then(Algorithm::chosen)
            .ok_or_else(|| LoginError::Disagreed("it has none of the CHAP algorithms MD5 and SHA-256".to_owned()))?;
        let identifier = value(pairs, "CHAP_I").and_then(|text| text.parse::<u8>().ok());
        let challenge = value(pairs, "CHAP_C").and_then(|text| text::binary(text, chap::CHALLENGE_MAX));
        let (Some(identifier), Some(challenge)) = (identifier, challenge.filter(|bytes| !bytes.is_empty())) else {
            return protocol("a CHAP challenge that can't be read");
        };
        let Some(account) = &self.wish.account else {
            return Err(LoginError::WantsAccount);
        };
        // Whoever hands us our own challenge wants us to answer it for him.
        if self.wish.mutual.is_some() && challenge == self.wish.challenge.1 {
            return Err(LoginError::Impostor);
        }
        let mut text = Pairs::default();
        text.put("CHAP_N", &account.user);
        text.put("CHAP_R", &text::hex(&algorithm.response(identifier, &account.secret, &challenge)));
        if self.wish.mutual.is_some() {
            text.put("CHAP_I", &self.wish.challenge.0.to_string());
            text.put("CHAP_C", &text::hex(&self.wish.challenge.1));
        }
        self.phase = Phase::Response(algorithm);
        Ok(Step::Send(self.request(SECURITY, Some(OPERATIONAL), text)))
    }

    fn ask_parameters(&mut self, answer: &LoginAnswer) -> Result<Step, LoginError> {
        if answer.next != OPERATIONAL {
            return protocol(format!("it goes to stage {}, expected {OPERATIONAL}", answer.next));
        }
        self.phase = Phase::Parameters;
        // Whoever turned digests on wants them, and not a target that leaves them away.
        let offer = |on| if on { "CRC32C" } else { "None" };
        let mut text = Pairs::default();
        text.put("HeaderDigest", offer(self.wish.header_digest));
        text.put("DataDigest", offer(self.wish.data_digest));
        text.put("MaxRecvDataSegmentLength", &RECEIVE_MAX.to_string());
        text.put("ErrorRecoveryLevel", "0");
        text.put("DefaultTime2Wait", "0");
        text.put("DefaultTime2Retain", "0");
        if self.wish.target.is_some() {
            text.put("MaxConnections", "1");
            text.put("InitialR2T", "Yes");
            text.put("ImmediateData", "No");
            text.put("MaxOutstandingR2T", "1");
            text.put("MaxBurstLength", BURST);
            text.put("FirstBurstLength", "65536");
            // Data comes in its order: it goes to the end of its command's buffer, and nowhere else.
            text.put("DataPDUInOrder", "Yes");
            text.put("DataSequenceInOrder", "Yes");
        }
        Ok(Step::Send(self.request(OPERATIONAL, Some(FULL), text)))
    }

    fn parameters(
        &mut self,
        pairs: &[(&str, &str)],
        answer: &LoginAnswer,
        numbers: pdu::Numbers,
    ) -> Result<Step, LoginError> {
        let mut reply = Pairs::default();
        for (key, value) in pairs {
            self.parameter(key, value, &mut reply)?;
        }
        if !answer.transit {
            return Ok(Step::Send(self.request(OPERATIONAL, Some(FULL), reply)));
        }
        if answer.next != FULL {
            return protocol(format!("it goes to stage {}, expected {FULL}", answer.next));
        }
        if answer.tsih == 0 {
            return protocol("a session without a handle");
        }
        if (self.header_digest, self.data_digest) != (self.wish.header_digest, self.wish.data_digest) {
            return Err(LoginError::Disagreed("it left a digest away that our settings turn on".to_owned()));
        }
        Ok(Step::Done(Agreed {
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            // Login requests are immediate: they carry the number of the first command and use none up.
            cmd_sn: 1,
            max_cmd_sn: numbers.max_cmd_sn,
            exp_stat_sn: numbers.stat_sn.wrapping_add(1),
            tsih: self.tsih,
        }))
    }

    fn parameter(&mut self, key: &str, value: &str, reply: &mut Pairs) -> Result<(), LoginError> {
        let disagreed = || Err(LoginError::Disagreed(format!("{key}={value}")));
        let digest = |wished: bool| match (value, wished) {
            ("None", false) => Ok(false),
            ("CRC32C", true) => Ok(true),
            ("None" | "Reject", true) => {
                Err(LoginError::Disagreed(format!("{key}={value}: turn it on there, or off in our settings")))
            }
            _ => Err(LoginError::Disagreed(format!("{key}={value}, which wasn't offered"))),
        };
        match key {
            "HeaderDigest" => self.header_digest = digest(self.wish.header_digest)?,
            "DataDigest" => self.data_digest = digest(self.wish.data_digest)?,
            "DataPDUInOrder" | "DataSequenceInOrder" if value != "Yes" => return disagreed(),
            "ErrorRecoveryLevel" if value != "0" => return disagreed(),
            // How much it takes in one PDU: all of ours are headers alone. The rest is about writes, or told for information.
            "MaxRecvDataSegmentLength"
            | "DataPDUInOrder"
            | "DataSequenceInOrder"
            | "ErrorRecoveryLevel"
            | "MaxConnections"
            | "InitialR2T"
            | "ImmediateData"
            | "MaxOutstandingR2T"
            | "MaxBurstLength"
            | "FirstBurstLength"
            | "DefaultTime2Wait"
            | "DefaultTime2Retain"
            | "TargetAlias"
            | "TargetAddress"
            | "TargetPortalGroupTag" => {}
            // An offer of the target's that we don't know.
            _ if !matches!(value, "NotUnderstood" | "Irrelevant" | "Reject") => reply.put(key, "NotUnderstood"),
            _ => {}
        }
        Ok(())
    }
}

fn value<'a>(pairs: &[(&str, &'a str)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
}
