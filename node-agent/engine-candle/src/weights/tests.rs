//! Hostile headers, each by name, and flipped bytes that must never panic.

use std::fs::File;
use std::io::{Cursor as Bytes, Write};

use proptest::prelude::*;

use super::file::{TOKENIZER_BYTES_MAX, WeightFile, read_small};
use super::{gguf, safetensors};

/// A GGUF header written by hand.
struct Gguf(Vec<u8>);

impl Gguf {
    fn new(tensors: u64, keys: u64) -> Self {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        Self(bytes)
    }

    fn text(mut self, text: &str) -> Self {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn key(self, key: &str, value: u32) -> Self {
        self.text(key).u32(4).u32(value)
    }

    fn tensor(self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let begun = self.text(name).u32(u32::try_from(shape.len()).unwrap());
        shape.iter().fold(begun, |file, dimension| file.u64(*dimension)).u32(kind).u64(offset)
    }

    fn data(mut self, bytes: usize) -> Vec<u8> {
        self.0.resize(self.0.len().next_multiple_of(32) + bytes, 0);
        self.0
    }
}

fn gguf_error(bytes: &[u8]) -> String {
    gguf::read_header(bytes, bytes.len() as u64).expect_err("it had to be refused").0
}

fn safe(json: &str, data: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend(json.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn safe_error(bytes: &[u8]) -> String {
    safetensors::read_header(bytes, bytes.len() as u64).expect_err("it had to be refused").0
}

fn valid_gguf() -> Vec<u8> {
    Gguf::new(2, 3)
        .key("a.number", 7)
        .text("some.words")
        .u32(9)
        .u32(8)
        .u64(2)
        .text("one")
        .text("two")
        .text("some.flags")
        .u32(9)
        .u32(7)
        .u64(3)
        .u8s(&[1, 0, 1])
        .tensor("first", &[32, 2], 3, 0)
        .tensor("second", &[8], 0, 64)
        .data(64 + 32)
}

impl Gguf {
    fn u8s(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}

fn valid_safetensors() -> Vec<u8> {
    safe(
        r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"F16","shape":[4],"data_offsets":[24,32]}}"#,
        32,
    )
}

#[test]
fn a_valid_gguf_is_read() {
    let bytes = valid_gguf();
    let header = gguf::read_header(bytes.as_slice(), bytes.len() as u64).unwrap();
    assert_eq!(header.number("a.number"), Some(7));
    assert_eq!(header.metadata["some.words"], gguf::Value::Texts(vec!["one".into(), "two".into()]));
    assert_eq!(header.metadata["some.flags"], gguf::Value::Skipped(3));
    let first = &header.tensors["first"];
    assert_eq!((first.shape.as_slice(), first.length, first.quantisation.name), (&[2usize, 32][..], 40, "Q4_1"));
    assert_eq!(header.data_begin % 32, 0);
}

#[test]
fn gguf_with_2_to_the_63_tensors() {
    assert!(gguf_error(&Gguf::new(1 << 63, 0).data(0)).contains("9223372036854775808 tensors"));
    assert!(gguf_error(&Gguf::new(0, 1 << 63).data(0)).contains("keys"));
}

#[test]
fn gguf_whose_dimensions_overflow() {
    let file = Gguf::new(1, 0).tensor("t", &[1 << 32, 1 << 32, 2], 0, 0).data(64);
    assert!(gguf_error(&file).contains("overflow"));
    // The product fits, the bytes don't.
    let file = Gguf::new(1, 0).tensor("t", &[1 << 62], 0, 0).data(64);
    assert!(gguf_error(&file).contains("overflow"));
}

#[test]
fn gguf_with_an_offset_past_the_end() {
    let file = Gguf::new(1, 0).tensor("t", &[8], 0, 64).data(64);
    assert!(gguf_error(&file).contains("offset 64"));
    let file = Gguf::new(1, 0).tensor("t", &[8], 0, u64::MAX - 31).data(64);
    assert!(gguf_error(&file).contains("offset"));
}

#[test]
fn gguf_with_a_name_of_2_to_the_40_bytes() {
    assert!(gguf_error(&Gguf::new(1, 0).u64(1 << 40).data(64)).contains("1099511627776"));
    assert!(gguf_error(&Gguf::new(0, 1).u64(1 << 40).data(64)).contains("1099511627776"));
}

#[test]
fn gguf_with_zero_dimensions() {
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[], 0, 0).data(64)).contains("0 dimensions"));
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[8, 0], 0, 0).data(64)).contains("zero"));
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[1; 5], 0, 0).data(64)).contains("5 dimensions"));
}

#[test]
fn gguf_whose_tensors_overlap() {
    let file = Gguf::new(2, 0).tensor("a", &[16], 0, 0).tensor("b", &[16], 0, 32).data(128);
    assert!(gguf_error(&file).contains("overlap"));
}

#[test]
fn gguf_of_other_kinds() {
    let mut file = valid_gguf();
    file[0] = b'X';
    assert!(gguf_error(&file).contains("begins with"));
    let mut file = valid_gguf();
    file[4] = 1;
    assert!(gguf_error(&file).contains("version 1"));
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[256], 17, 0).data(640)).contains("type 17"));
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[31], 3, 0).data(640)).contains("multiples of 32"));
    assert!(gguf_error(&Gguf::new(1, 0).tensor("t", &[8], 0, 4).data(640)).contains("no multiple"));
    let twice = Gguf::new(2, 0).tensor("t", &[8], 0, 0).tensor("t", &[8], 0, 32).data(64);
    assert!(gguf_error(&twice).contains("twice"));
    let array = Gguf::new(0, 1).text("k").u32(9).u32(9).u64(1).data(64);
    assert!(gguf_error(&array).contains("array of arrays"));
    let array = Gguf::new(0, 1).text("k").u32(9).u32(4).u64(1 << 60).data(64);
    assert!(gguf_error(&array).contains("claims"));
    let alignment = Gguf::new(0, 1).key("general.alignment", 0).data(64);
    assert!(gguf_error(&alignment).contains("power of two"));
}

#[test]
fn a_truncated_gguf() {
    let file = valid_gguf();
    for length in 0..file.len() - 1 {
        assert!(gguf::read_header(&file[..length], length as u64).is_err(), "cut at {length}");
    }
}

#[test]
fn a_valid_safetensors_is_read() {
    let bytes = valid_safetensors();
    let header = safetensors::read_header(bytes.as_slice(), bytes.len() as u64).unwrap();
    assert_eq!(header.tensors["a"].shape, [2, 3]);
    assert_eq!(header.tensors["b"].begin + header.tensors["b"].length, bytes.len() as u64);
}

#[test]
fn safetensors_with_a_header_longer_than_the_file() {
    let mut file = valid_safetensors();
    file[..8].copy_from_slice(&1_000_000u64.to_le_bytes());
    assert!(safe_error(&file).contains("claims 1000000 bytes"));
    file[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(safe_error(&file).contains("at most"));
}

#[test]
fn safetensors_whose_tensors_overlap() {
    let file = safe(
        r#"{"a":{"dtype":"U8","shape":[6],"data_offsets":[0,6]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
        8,
    );
    assert!(safe_error(&file).contains("overlap"));
}

#[test]
fn safetensors_of_wrong_sizes() {
    let one = |shape: &str, begin: u64, end: u64, data: usize| {
        safe_error(&safe(&format!(r#"{{"a":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}}}"#), data))
    };
    assert!(one("[2]", 0, 4, 4).contains("doesn't fill"));
    assert!(one("[2]", 8, 0, 8).contains("lies at"));
    assert!(one("[2]", 0, 8, 4).contains("lies at"));
    assert!(one("[2]", u64::MAX - 7, u64::MAX, 8).contains("lies at"));
    assert!(one("[4294967296,4294967296]", 0, 8, 8).contains("overflow"));
    assert!(one("[0]", 0, 0, 0).contains("zero"));
    assert!(one("[]", 0, 4, 4).contains("no dimensions"));
    assert!(one("[1]", 0, 4, 8).contains("the file holds 8"));
    let twice =
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(safe_error(&safe(twice, 1)).contains("twice"));
    assert!(safe_error(&safe("[[[[", 0)).contains("no table"));
    assert!(safe_error(&safe(&"[".repeat(100_000), 0)).contains("no table"));
}

#[test]
fn a_truncated_safetensors() {
    let file = valid_safetensors();
    for length in 0..file.len() {
        assert!(safetensors::read_header(&file[..length], length as u64).is_err(), "cut at {length}");
    }
}

#[test]
fn tokenizer_json_of_500_mb() {
    let dir = tempfile::tempdir().unwrap();
    File::create(dir.path().join("tokenizer.json")).unwrap().set_len(500 << 20).unwrap();
    let error = read_small(dir.path(), "tokenizer.json", TOKENIZER_BYTES_MAX).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json") && error.contains("524288000"), "{error}");
}

#[test]
fn a_file_that_shrinks_after_it_was_opened() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w");
    File::create(&path).unwrap().write_all(&[1; 64]).unwrap();
    let file = WeightFile::open(dir.path(), "w").unwrap();
    assert_eq!(file.read_at(60, 4).unwrap(), [1; 4]);
    assert!(file.read_at(60, 5).is_err());
    assert!(file.read_at(u64::MAX, 2).is_err());
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    assert!(file.read_at(0, 64).unwrap_err().to_string().contains("changed"));
    assert!(WeightFile::open(dir.path(), ".").is_err(), "a folder is no file");
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(at in 0usize..400, value: u8, cut in 0usize..500, more in 0usize..3) {
        let flip = |mut bytes: Vec<u8>| {
            for step in 0..=more {
                let place = (at + step * 97) % bytes.len();
                bytes[place] ^= value;
            }
            let end = bytes.len() - cut.min(bytes.len()) / 8;
            bytes.truncate(end);
            bytes
        };
        let bytes = flip(valid_gguf());
        if let Ok(header) = gguf::read_header(Bytes::new(&bytes), bytes.len() as u64) {
            for place in header.tensors.values() {
                prop_assert!(header.data_begin + place.offset + place.length <= bytes.len() as u64);
            }
        }
        let bytes = flip(valid_safetensors());
        if let Ok(header) = safetensors::read_header(Bytes::new(&bytes), bytes.len() as u64) {
            for place in header.tensors.values() {
                prop_assert!(place.begin + place.length <= bytes.len() as u64);
            }
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = gguf::read_header(bytes.as_slice(), bytes.len() as u64);
        let _ = safetensors::read_header(bytes.as_slice(), bytes.len() as u64);
        let mut named = b"GGUF\x03\0\0\0".to_vec();
        named.extend(&bytes);
        let _ = gguf::read_header(named.as_slice(), named.len() as u64);
    }
}
