//! Logins: with and without CHAP, in one piece and in several, refused, misled, and without end.

use ingle_iscsi::chap::{Account, Algorithm, Secret};
use ingle_iscsi::discovery::{self, Discovery};
use ingle_iscsi::login::{self, Login, LoginError, Step, Wish};
use ingle_iscsi::text::hex;
use ingle_iscsi::{Agreed, Session, scsi};
use proptest::prelude::*;

use crate::pdus;

const TEXT: &str = "MaxRecvDataSegmentLength=8192\nMaxBurstLength=262144\nDataPDUInOrder=Yes\nErrorRecoveryLevel=0\n";
const CHALLENGE: [u8; 16] = [9; 16];

fn account(user: &str, secret: &str) -> Account {
    Account { user: user.to_owned(), secret: Secret::new(secret) }
}

fn wish() -> Wish {
    Wish {
        initiator: "iqn.2026-11.test:us".to_owned(),
        isid: [0x80, 1, 2, 3, 0, 0],
        target: Some("iqn.2026-11.test:them".to_owned()),
        account: None,
        mutual: None,
        challenge: (77, CHALLENGE),
        header_digest: false,
        data_digest: false,
    }
}

/// Flags, number, handle, status, text.
type Answer<'a> = (u8, u32, u16, (u8, u8), &'a str);
/// `None`: it goes on.
type Ended = Result<Option<Agreed>, LoginError>;

/// Hands answers in one after the other; what was sent at each step, and how it ended.
fn run(wish: Wish, answers: &[Answer<'_>]) -> (Vec<(u8, String)>, Ended) {
    let (mut login, first) = Login::begin(wish);
    let mut requests = vec![pdus::sent(&first)];
    for (flags, stat_sn, tsih, status, text) in answers {
        let (header, data) = pdus::login(*flags, *stat_sn, *tsih, *status, text);
        assert!(login::segment(&header).expect("a short one") >= data.len());
        match login.answer(&header, &data) {
            Ok(Step::Send(request)) => requests.push(pdus::sent(&request)),
            Ok(Step::Done(agreed)) => return (requests, Ok(Some(agreed))),
            Err(error) => return (requests, Err(error)),
        }
    }
    (requests, Ok(None))
}

const FINE: (u8, u8) = (0, 0);

#[test]
fn without_a_password() {
    let (sent, agreed) =
        run(wish(), &[(0x81, 5, 0, FINE, "AuthMethod=None\nTargetPortalGroupTag=1\n"), (0x87, 6, 9, FINE, TEXT)]);
    let agreed = agreed.unwrap().expect("a session");
    assert_eq!((agreed.cmd_sn, agreed.max_cmd_sn, agreed.exp_stat_sn, agreed.tsih), (1, 33, 7, 9));
    assert_eq!(sent[0].0, 0x81, "security, to parameters");
    assert_eq!(
        sent[0].1,
        "InitiatorName=iqn.2026-11.test:us\nTargetName=iqn.2026-11.test:them\nSessionType=Normal\nAuthMethod=None\n"
    );
    assert_eq!(sent[1].0, 0x87, "parameters, to the session");
    for part in ["HeaderDigest=None\n", "MaxRecvDataSegmentLength=262144\n", "DataPDUInOrder=Yes\n"] {
        assert!(sent[1].1.contains(part), "{}", sent[1].1);
    }
}

#[test]
fn a_target_that_takes_its_time() {
    // It says first that it has no wishes, doesn't go on at once, and sends its parameters in three pieces, one key cut.
    let (sent, agreed) = run(
        wish(),
        &[
            (0x00, 1, 0, FINE, "AuthMethod=None\n"),
            (0x81, 2, 0, FINE, ""),
            (0x44, 3, 0, FINE, "MaxRecvDataSegment"),
            (0x44, 4, 0, FINE, "Length=8192\nX-com.example=5\nTarget"),
            (0x04, 5, 0, FINE, "Alias=disk\n"),
            (0x87, 6, 2, FINE, ""),
        ],
    );
    assert!(agreed.unwrap().is_some());
    assert_eq!(sent[1].0, 0x81, "we go on");
    assert_eq!(sent[3], (0x04, String::new()), "more, please");
    assert_eq!(sent[5], (0x87, "X-com.example=NotUnderstood\n".to_owned()));
}

#[test]
fn with_chap_by_either_algorithm() {
    for (number, algorithm) in [("5", Algorithm::Md5), ("7", Algorithm::Sha256)] {
        let wish = Wish { account: Some(account("gw", "secretsecret12")), ..wish() };
        let challenge = format!("CHAP_A={number}\nCHAP_I=42\nCHAP_C=0x0102030405\n");
        let (sent, agreed) = run(
            wish,
            &[
                (0x00, 0, 0, FINE, "AuthMethod=CHAP\n"),
                (0x00, 1, 0, FINE, &challenge),
                (0x81, 2, 0, FINE, ""),
                (0x87, 3, 1, FINE, TEXT),
            ],
        );
        assert!(agreed.unwrap().is_some());
        assert!(sent[0].1.ends_with("AuthMethod=CHAP,None\n") && sent[0].0 == 0, "{:?}", sent[0]);
        assert_eq!(sent[1], (0x00, "CHAP_A=5,7\n".to_owned()));
        let response = algorithm.response(42, &Secret::new("secretsecret12"), &[1, 2, 3, 4, 5]);
        assert_eq!(sent[2], (0x81, format!("CHAP_N=gw\nCHAP_R={}\n", hex(&response))));
    }
}

#[test]
fn both_prove_who_they_are() {
    let wish = || Wish {
        account: Some(account("gw", "secretsecret12")),
        mutual: Some(account("nas", "othersecret34")),
        ..wish()
    };
    let proof = Algorithm::Md5.response(77, &Secret::new("othersecret34"), &CHALLENGE);
    let end = |text: &str| {
        let answers = [
            (0x00, 0, 0, FINE, "AuthMethod=CHAP\n"),
            (0x00, 1, 0, FINE, "CHAP_A=5\nCHAP_I=1\nCHAP_C=0x01\n"),
            (0x81, 2, 0, FINE, text),
            (0x87, 3, 1, FINE, TEXT),
        ];
        run(wish(), &answers)
    };
    let (sent, agreed) = end(&format!("CHAP_N=nas\nCHAP_R={}\n", hex(&proof)));
    assert!(agreed.unwrap().is_some());
    assert!(sent[0].1.ends_with("AuthMethod=CHAP\n"), "not without");
    assert!(sent[2].1.contains(&format!("CHAP_I=77\nCHAP_C={}\n", hex(&CHALLENGE))), "{}", sent[2].1);
    for bad in [
        String::new(),
        format!("CHAP_N=nas\nCHAP_R={}\n", hex(&[0; 16])),
        format!("CHAP_N=somebody\nCHAP_R={}\n", hex(&proof)),
    ] {
        assert_eq!(end(&bad).1, Err(LoginError::Impostor), "{bad}");
    }
    let (_, agreed) = run(wish(), &[(0x81, 0, 0, FINE, "AuthMethod=None\n")]);
    assert_eq!(agreed, Err(LoginError::Impostor), "it would go without proof");
    let own = format!("CHAP_A=5\nCHAP_I=1\nCHAP_C={}\n", hex(&CHALLENGE));
    let (_, agreed) = run(wish(), &[(0x00, 0, 0, FINE, "AuthMethod=CHAP\n"), (0x00, 1, 0, FINE, &own)]);
    assert_eq!(agreed, Err(LoginError::Impostor), "it wants us to answer our own challenge");
}

#[test]
fn digests_are_what_both_want() {
    let parameters = |header_digest, data_digest, text: &str| {
        let wish = Wish { header_digest, data_digest, ..wish() };
        run(wish, &[(0x81, 0, 0, FINE, "AuthMethod=None\n"), (0x87, 1, 1, FINE, text)]).1
    };
    for (header, data) in [(false, false), (true, false), (false, true), (true, true)] {
        let word = |on| if on { "CRC32C" } else { "None" };
        let text = format!("HeaderDigest={}\nDataDigest={}\n", word(header), word(data));
        let agreed = parameters(header, data, &text).unwrap().expect("a session");
        assert_eq!((agreed.header_digest, agreed.data_digest), (header, data));
    }
    for text in ["HeaderDigest=None\nDataDigest=CRC32C\n", "HeaderDigest=Reject\nDataDigest=CRC32C\n", ""] {
        let said = parameters(true, true, text).expect_err("it leaves one away").to_string();
        assert!(said.contains("igest"), "{said}");
    }
    let said = parameters(false, false, "HeaderDigest=CRC32C\n").expect_err("not offered").to_string();
    assert!(said.contains("wasn't offered"), "{said}");
}

#[test]
fn refusals_are_told_apart() {
    let refused = |account: Option<Account>, status, text: &str| {
        run(Wish { account, ..wish() }, &[(0x81, 0, 0, status, text)]).1.expect_err("refused")
    };
    assert_eq!(refused(None, (2, 1), ""), LoginError::WantsAccount);
    assert!(matches!(refused(Some(account("a", "b")), (2, 1), ""), LoginError::Refused(_)));
    assert!(matches!(refused(None, (2, 2), ""), LoginError::Refused(_)));
    assert_eq!(refused(None, (2, 3), ""), LoginError::NoSuchTarget);
    assert!(matches!(refused(None, (3, 1), ""), LoginError::Later(_)));
    assert!(matches!(refused(None, (9, 1), ""), LoginError::Protocol(_)));
    let moved = refused(None, (1, 1), "TargetAddress=10.0.0.7:3261,1\n");
    assert_eq!(moved, LoginError::Moved("10.0.0.7:3261,1".to_owned()));
    assert!(matches!(refused(None, (1, 1), ""), LoginError::Protocol(_)));
    let wants = run(wish(), &[(0x00, 0, 0, FINE, "AuthMethod=CHAP\n")]).1;
    assert_eq!(wants, Err(LoginError::WantsAccount));
    let wants = run(wish(), &[(0x00, 0, 0, FINE, "AuthMethod=Reject\n")]).1;
    assert_eq!(wants, Err(LoginError::WantsAccount));
}

#[test]
fn lies_are_found_out() {
    let method = (0x81, 0, 0, FINE, "AuthMethod=None\n");
    let chap = Wish { account: Some(account("gw", "secretsecret12")), ..wish() };
    for (what, wish, answers) in [
        ("a stage that we aren't in", wish(), vec![(0x87, 0, 1, FINE, "")]),
        ("two answers with one number", wish(), vec![method, (0x87, 0, 1, FINE, TEXT)]),
        ("a session without a handle", wish(), vec![method, (0x87, 1, 0, FINE, TEXT)]),
        ("a stage that isn't next", wish(), vec![(0x83, 0, 1, FINE, "AuthMethod=None\n")]),
        ("going on and ending", wish(), vec![(0xc1, 0, 0, FINE, "")]),
        ("data out of order", wish(), vec![method, (0x87, 1, 1, FINE, "DataPDUInOrder=No\n")]),
        ("recovery that we don't do", wish(), vec![method, (0x87, 1, 1, FINE, "ErrorRecoveryLevel=2\n")]),
        ("no pairs", wish(), vec![(0x81, 0, 0, FINE, "nonsense\n")]),
        (
            "a challenge that can't be read",
            chap.clone(),
            vec![(0x00, 0, 0, FINE, "AuthMethod=CHAP\n"), (0x00, 1, 0, FINE, "CHAP_A=5\nCHAP_I=300\nCHAP_C=0x01\n")],
        ),
        (
            "an algorithm that wasn't offered",
            chap,
            vec![(0x00, 0, 0, FINE, "AuthMethod=CHAP\n"), (0x00, 1, 0, FINE, "CHAP_A=6\nCHAP_I=3\nCHAP_C=0x01\n")],
        ),
    ] {
        let error = run(wish, &answers).1.expect_err(what);
        assert!(matches!(error, LoginError::Protocol(_) | LoginError::Disagreed(_)), "{what}: {error}");
    }
    let mut header = pdus::login(0x81, 0, 0, FINE, "").0;
    header[5] = 0xff;
    assert!(login::segment(&header).unwrap_err().to_string().contains("at most 8192"));
    let long = "X-key=".to_owned() + &"v".repeat(8000);
    let endless: Vec<_> = (0..100).map(|n| (0x40, n, 0, FINE, long.as_str())).collect();
    assert!(run(wish(), &endless).1.expect_err("endless text").to_string().contains("65536"));
    let endless: Vec<_> = (0..100).map(|n| (0x40, n, 0, FINE, "")).collect();
    assert!(run(wish(), &endless).1.expect_err("endless answers").to_string().contains("24 answers"));
}

fn agreed() -> Agreed {
    Agreed { header_digest: false, data_digest: false, cmd_sn: 1, max_cmd_sn: 9, exp_stat_sn: 4, tsih: 1 }
}

#[test]
fn targets_are_named_however_many_answers_it_takes() {
    let (mut discovery, first) = Discovery::begin(&agreed());
    assert_eq!(&first[48..64], b"SendTargets=All\0");
    let answer = |flags, transfer: u32, stat_sn, text: &str| {
        let text = text.replace('\n', "\0");
        (pdus::header(0x24, flags, text.len(), &[(16, 2), (20, transfer), (24, stat_sn)]), text)
    };
    let (header, text) = answer(0x00, 0x55, 4, "TargetName=iqn.a:1\nTargetAddress=h:3260,1\nTargetNa");
    let discovery::Step::Send(more) = discovery.answer(&header, text.as_bytes()).unwrap() else { panic!("more") };
    assert_eq!((&more[20..24], &more[28..32]), ([0, 0, 0, 0x55].as_slice(), [0, 0, 0, 5].as_slice()));
    let (header, text) = answer(0x80, u32::MAX, 5, "me=iqn.b:2\nTargetName=iqn.a:1\n");
    let discovery::Step::Done(names) = discovery.answer(&header, text.as_bytes()).unwrap() else { panic!("the end") };
    assert_eq!(names, ["iqn.a:1", "iqn.b:2"]);
    let (mut discovery, _) = Discovery::begin(&agreed());
    let endless = (0..1000).find_map(|n| {
        let (header, text) = answer(0x00, 7, n, "TargetName=iqn.a:1\n");
        discovery.answer(&header, text.as_bytes()).err()
    });
    assert!(endless.expect("it ends").to_string().contains("no end"));
    assert!(discovery::segment(&pdus::header(0x24, 0x80, 262_145, &[])).is_err());
}

proptest! {
    #[test]
    fn no_answer_panics(
        first in prop_oneof![Just(0x23_u8), Just(0x24_u8), any::<u8>()],
        flags in any::<u8>(),
        status in prop_oneof![3 => Just(0_u8), 1 => any::<u8>()],
        texts in proptest::collection::vec("[A-Za-z_=,0-9\\x00]{0,80}", 1..6),
        chap in any::<bool>(),
    ) {
        let account = chap.then(|| account("gw", "secretsecret12"));
        let (mut login, _) = Login::begin(Wish { account, ..wish() });
        let (mut discovery, _) = Discovery::begin(&agreed());
        for (stat_sn, text) in (0..).zip(&texts) {
            let mut header = pdus::header(first, flags, text.len(), &[(16, 1), (24, stat_sn)]);
            header[36] = status;
            let _ = login.answer(&header, text.as_bytes());
            header[19] = 2;
            let _ = discovery.answer(&header, text.as_bytes());
        }
    }
}

#[test]
fn a_session_begins_where_the_login_ended() {
    let mut session = Session::new(agreed(), scsi::lun(0), 64);
    let mut sent = 0;
    while session.submit(&scsi::read(0, 1), 512, bytes::BytesMut::new()).is_some() {
        sent += 1;
    }
    assert_eq!(sent, 9, "commands 1 to 9, as the login said");
}
