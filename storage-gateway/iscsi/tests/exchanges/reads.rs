//! Sessions: reads in pieces and out of order, windows, pings, and everything that a target may lie about.

use bytes::{BufMut as _, BytesMut};
use ingle_iscsi::pdu::HEADER;
use ingle_iscsi::scsi::{self, Sense};
use ingle_iscsi::{Agreed, Event, Fault, Outcome, Session, Tag};
use proptest::prelude::*;

use crate::pdus::{header, pdu};

const NONE: u32 = u32::MAX;

/// A session with what its target would know.
struct Exchange {
    session: Session,
    digests: bool,
    stat_sn: u32,
    max_cmd_sn: u32,
}

impl Exchange {
    fn new(digests: bool) -> Self {
        let (header_digest, data_digest) = (digests, digests);
        let agreed = Agreed { header_digest, data_digest, cmd_sn: 1, max_cmd_sn: 4, exp_stat_sn: 7, tsih: 1 };
        Self { session: Session::new(agreed, scsi::lun(1), 8), digests, stat_sn: 7, max_cmd_sn: 4 }
    }

    /// Submits a read; its tag as the wire has it.
    fn read(&mut self, bytes: u32) -> (Tag, u32) {
        let tag = self.session.submit(&scsi::read(0, bytes / 512), bytes, BytesMut::new()).expect("room");
        let out = self.session.output().to_vec();
        self.session.sent(out.len());
        (tag, u32::from_be_bytes(out[out.len() - self.header_bytes()..][16..20].try_into().expect("four bytes")))
    }

    fn header_bytes(&self) -> usize {
        if self.digests { HEADER + 4 } else { HEADER }
    }

    fn data(&mut self, tag: u32, offset: u32, data_sn: u32, data: &[u8], last: bool) -> Vec<u8> {
        let mut words = vec![(16, tag), (20, NONE), (32, self.max_cmd_sn), (36, data_sn), (40, offset)];
        if last {
            words.push((24, self.stat_sn));
            self.stat_sn += 1;
        }
        pdu(&header(0x25, if last { 0x81 } else { 0 }, data.len(), &words), data, self.digests)
    }

    fn response(&mut self, tag: u32, status: u8, sense: &[u8]) -> Vec<u8> {
        let words = [(16, tag), (24, self.stat_sn), (28, self.max_cmd_sn), (32, self.max_cmd_sn)];
        self.stat_sn += 1;
        let mut data = Vec::new();
        if !sense.is_empty() {
            data.extend(u16::try_from(sense.len()).expect("short").to_be_bytes());
            data.extend(sense);
        }
        let mut header = header(0x21, 0x80, data.len(), &words);
        header[3] = status;
        pdu(&header, &data, self.digests)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| u8::try_from(i % 251).expect("below 251")).collect()
}

#[test]
fn a_read_in_pieces_cut_anywhere() {
    for digests in [false, true] {
        for cut in [1, 3, 47, 48, 49, 1000, 100_000] {
            let mut on = Exchange::new(digests);
            let (first, one) = on.read(8192);
            let (second, two) = on.read(512);
            let whole = pattern(8192);
            // Data of two commands, each in its own order; the status of the one with the data, of the other alone.
            let mut stream = on.data(one, 0, 0, &whole[..1021], false);
            stream.extend(on.data(two, 0, 0, &whole[..512], true));
            stream.extend(on.data(one, 1021, 1, &whole[1021..], false));
            stream.extend(on.response(one, 0, &[]));
            stream.chunks(cut).for_each(|part| on.session.take(part).unwrap());
            let ended = |data: &[u8]| Outcome::Done(BytesMut::from(data));
            assert_eq!(on.session.event(), Some(Event::Ended(second, ended(&whole[..512]))));
            assert_eq!(on.session.event(), Some(Event::Ended(first, ended(&whole))));
            assert_eq!((on.session.event(), on.session.in_flight()), (None, 0));
        }
    }
}

#[test]
fn large_data_goes_straight_to_its_place() {
    for digests in [false, true] {
        let mut on = Exchange::new(digests);
        let (tag, wire) = on.read(65_536);
        assert!(on.session.expects_large());
        let whole = pattern(65_536);
        let stream = on.data(wire, 0, 0, &whole, true);
        let head = on.header_bytes();
        on.session.take(&stream[..head + 10]).unwrap();
        let mut place = on.session.direct().expect("data comes next");
        assert_eq!(place.remaining_mut(), 65_526, "and no more of it than announced");
        place.put_slice(&whole[10..60_000]);
        on.session.placed(59_990).unwrap();
        on.session.take(&stream[head + 60_000..]).unwrap();
        assert!(on.session.direct().is_none());
        assert_eq!(on.session.event(), Some(Event::Ended(tag, Outcome::Done(BytesMut::from(&whole[..])))));
        assert!(!on.session.expects_large());
    }
}

#[test]
fn the_window_is_honoured() {
    let mut on = Exchange::new(false);
    let commands: Vec<u32> = (0..4).map(|_| on.read(512).1).collect();
    assert!(!on.session.may_submit(), "commands 1 to 4, no more");
    // The first one ends, and the target takes two more; a number from before changes nothing.
    on.max_cmd_sn = 6;
    let end = on.data(commands[0], 0, 0, &pattern(512), true);
    on.session.take(&end).unwrap();
    on.max_cmd_sn = 5;
    let end = on.data(commands[1], 0, 0, &pattern(512), true);
    on.session.take(&end).unwrap();
    on.read(512);
    on.read(512);
    assert!(!on.session.may_submit());
    on.max_cmd_sn = 1000;
    let end = on.data(commands[2], 0, 0, &pattern(512), true);
    on.session.take(&end).unwrap();
    for _ in 0..5 {
        on.read(512);
    }
    assert!(!on.session.may_submit(), "our own table has eight places");
}

#[test]
fn failures_say_why() {
    let mut on = Exchange::new(true);
    let (tag, wire) = on.read(4096);
    let sense = [0x70, 0, 0x03, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0];
    let end = on.response(wire, 2, &sense);
    on.session.take(&end).unwrap();
    let Some(Event::Ended(ended, Outcome::Failed { status: 2, sense: Some(sense) })) = on.session.event() else {
        panic!("a failure")
    };
    assert_eq!((ended, sense), (tag, Sense { key: 3, code: (0x11, 0) }));
    let (_, wire) = on.read(4096);
    let end = on.response(wire, 8, &[]);
    on.session.take(&end).unwrap();
    assert!(matches!(on.session.event(), Some(Event::Ended(_, Outcome::Failed { status: 8, sense: None }))));
    // Less than asked is what was there: whoever asked decides.
    let (_, wire) = on.read(4096);
    let some = on.data(wire, 0, 0, &pattern(100), false);
    let end = on.response(wire, 0, &[]);
    on.session.take(&[some, end].concat()).unwrap();
    assert!(matches!(on.session.event(), Some(Event::Ended(_, Outcome::Done(data))) if data.len() == 100));
}

#[test]
fn pings_go_both_ways() {
    let mut on = Exchange::new(false);
    on.session.ping();
    on.session.ping();
    let out = on.session.output().to_vec();
    assert_eq!((out.len(), out[0]), (HEADER, 0x40), "one at a time");
    on.session.sent(out.len());
    let tag = u32::from_be_bytes(out[16..20].try_into().unwrap());
    let pong = header(0x20, 0x80, 0, &[(16, tag), (20, NONE), (24, 7), (32, 4)]);
    on.session.take(&pong).unwrap();
    assert_eq!(on.session.event(), Some(Event::Pong));
    let ping = header(0x20, 0x80, 0, &[(16, NONE), (20, 0x99), (24, 8), (32, 4)]);
    on.session.take(&ping).unwrap();
    let out = on.session.output().to_vec();
    assert_eq!((out[0], &out[16..24]), (0x40, [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0x99].as_slice()));
    // One that only tells numbers wants no answer.
    on.session.sent(out.len());
    on.session.take(&header(0x20, 0x80, 0, &[(16, NONE), (20, NONE), (24, 8), (32, 4)])).unwrap();
    assert!(on.session.output().is_empty());
    let flood = (0..10_000).find_map(|_| on.session.take(&ping).err());
    assert_eq!(flood, Some(Fault::Flood));
}

#[test]
fn a_target_may_ask_us_to_leave() {
    for event in 0..=4_u8 {
        let mut on = Exchange::new(false);
        let mut asks = header(0x32, 0x80, 0, &[(16, NONE), (24, 7), (32, 4)]);
        asks[36] = event;
        on.session.take(&asks).unwrap();
        assert_eq!(on.session.event(), matches!(event, 1..=3).then_some(Event::Leave), "event {event}");
    }
}

#[test]
fn lies_end_the_session() {
    let lie = |build: &dyn Fn(&mut Exchange, u32) -> Vec<u8>| {
        let mut on = Exchange::new(false);
        let (_, tag) = on.read(4096);
        let bytes = build(&mut on, tag);
        on.session.take(&bytes).expect_err("a lie")
    };
    let data = pattern(2048);
    assert_eq!(lie(&|on, tag| on.data(tag ^ 0x10000, 0, 0, &data, false)), Fault::Unknown(0x0000_0000));
    assert!(matches!(lie(&|on, _| on.data(NONE, 0, 0, &data, false)), Fault::Unknown(NONE)));
    assert!(matches!(lie(&|on, tag| on.response(tag + 1, 0, &[])), Fault::Unknown(_)));
    let misplaced = |offset| move |on: &mut Exchange, tag| on.data(tag, offset, 0, &pattern(2048), false);
    for offset in [1, 4096, NONE] {
        assert!(matches!(lie(&misplaced(offset)), Fault::Misplaced { .. }), "at {offset}");
    }
    let overlapping = |on: &mut Exchange, tag| {
        [on.data(tag, 0, 0, &pattern(2048), false), on.data(tag, 1024, 1, &pattern(2048), false)].concat()
    };
    assert!(matches!(lie(&overlapping), Fault::Misplaced { offset: 1024, held: 2048, expected: 4096 }));
    let too_much = |on: &mut Exchange, tag| {
        [on.data(tag, 0, 0, &pattern(2048), false), on.data(tag, 2048, 1, &pattern(2049), false)].concat()
    };
    assert!(matches!(lie(&too_much), Fault::Misplaced { .. }));
    assert!(matches!(lie(&|on, tag| on.data(tag, 0, 5, &data, false)), Fault::Numbered { what: "data", .. }));
    // Announced, never sent: the header alone is enough to end it.
    let announced = |first, data: usize| {
        move |_: &mut Exchange, tag| header(first, 0x80, data, &[(16, tag), (24, 7), (32, 4)]).to_vec()
    };
    assert!(matches!(lie(&announced(0x25, 0xff_ffff)), Fault::TooLong { what: "data", .. }));
    assert!(matches!(lie(&announced(0x21, 5000)), Fault::TooLong { what: "a segment", .. }));
    assert!(matches!(lie(&announced(0x20, 5000)), Fault::TooLong { .. }));
    assert!(matches!(lie(&announced(0x3f, 0)), Fault::Rejected(_)));
    assert!(matches!(lie(&announced(0x31, 0)), Fault::Pdu(_)), "ready to transfer what?");
    assert!(matches!(lie(&announced(0x24, 0)), Fault::Unexpected(_)));
    assert!(matches!(lie(&announced(0x23, 0)), Fault::Unexpected(_)));
    let skipped = |on: &mut Exchange, tag| {
        on.stat_sn += 1;
        on.response(tag, 0, &[])
    };
    assert!(matches!(lie(&skipped), Fault::Numbered { what: "response", found: 8, expected: 7 }));
    let failed = |on: &mut Exchange, tag| {
        let mut bytes = on.response(tag, 0, &[]);
        bytes[2] = 1;
        bytes
    };
    assert_eq!(lie(&failed), Fault::TargetFailure(1));
    let twice = |on: &mut Exchange, tag| [on.response(tag, 0, &[]), on.response(tag, 0, &[])].concat();
    assert!(matches!(lie(&twice), Fault::Unknown(_)));
}

#[test]
fn what_was_spoilt_on_the_way_is_noticed() {
    let mut clean = Exchange::new(true);
    let (_, tag) = clean.read(512);
    let bytes = clean.data(tag, 0, 0, &pattern(509), true);
    assert!(bytes.len() > 48 + 509);
    for spoilt in 0..bytes.len() {
        let mut on = Exchange::new(true);
        assert_eq!(on.read(512).1, tag);
        let mut bytes = bytes.clone();
        bytes[spoilt] ^= 0x10;
        let what = if spoilt < 52 { "a header" } else { "data" };
        assert_eq!(on.session.take(&bytes), Err(Fault::Digest(what)), "byte {spoilt}");
    }
}

proptest! {
    /// Sound PDUs with bytes changed: never a panic, never more than was asked for.
    #[test]
    fn no_stream_panics(
        changes in proptest::collection::vec((0..6000_usize, any::<u8>()), 0..12),
        cut in 1..3000_usize,
        digests in any::<bool>(),
    ) {
        let mut on = Exchange::new(digests);
        let (_, one) = on.read(4096);
        let (_, two) = on.read(512);
        let mut stream = on.data(one, 0, 0, &pattern(4096), false);
        stream.extend(on.data(two, 0, 0, &pattern(512), true));
        stream.extend(on.response(one, 2, &[0x72, 5, 0x25, 0]));
        stream.extend(header(0x20, 0x80, 0, &[(16, NONE), (20, 0x99), (24, 9), (32, 9)]));
        for (at, byte) in changes {
            let length = stream.len();
            stream[at % length] = byte;
        }
        for part in stream.chunks(cut) {
            if on.session.take(part).is_err() {
                break;
            }
        }
        while let Some(event) = on.session.event() {
            if let Event::Ended(_, Outcome::Done(data)) = event {
                prop_assert!(data.len() <= 4096);
            }
        }
    }

    #[test]
    fn no_noise_panics(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let mut on = Exchange::new(false);
        on.read(4096);
        let _ = on.session.take(&bytes);
    }
}
