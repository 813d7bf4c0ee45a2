//! Files as they should be, and files that lie about themselves.

use super::*;

fn key(field: u64, kind: u64, out: &mut Vec<u8>) {
    number(field << 3 | kind, out);
}

fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn bytes(field: u64, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    key(field, 2, &mut out);
    number(bytes.len() as u64, &mut out);
    out.extend(bytes);
    out
}

fn varint(field: u64, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    key(field, 0, &mut out);
    number(value.cast_unsigned(), &mut out);
    out
}

fn tensor(name: &str, kind: i64, dimensions: &[i64], raw: &[u8]) -> Vec<u8> {
    let mut out: Vec<u8> = dimensions.iter().flat_map(|dimension| varint(1, *dimension)).collect();
    out.extend(varint(2, kind));
    out.extend(bytes(8, name.as_bytes()));
    out.extend(bytes(9, raw));
    out
}

fn node(op: &str, inputs: &[&str], output: &str) -> Vec<u8> {
    let mut out: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    out.extend(bytes(2, output.as_bytes()));
    out.extend(bytes(4, op.as_bytes()));
    out
}

fn model(graph: &[u8]) -> Vec<u8> {
    [varint(1, 8), bytes(7, graph)].concat()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A file with an initialiser, a constant, an identity, attributes and metadata.
fn good() -> Vec<u8> {
    let mut conv = node("Conv", &["x", "renamed"], "y");
    let strides = [bytes(1, b"strides"), bytes(8, &[2, 1])].concat();
    let group = [bytes(1, b"group"), varint(3, -3)].concat();
    conv.extend(bytes(5, &strides));
    conv.extend(bytes(5, &group));
    let mut constant = node("Constant", &[], "three");
    constant.extend(bytes(5, &bytes(5, &tensor("three", 1, &[], &floats(&[3.0])))));
    let graph = [
        bytes(1, &constant),
        bytes(1, &node("Identity", &["w"], "renamed")),
        bytes(1, &conv),
        bytes(5, &tensor("w", 1, &[1, 2], &floats(&[0.5, -1.0]))),
        bytes(5, &tensor("axes", 7, &[1], &(-1i64).to_le_bytes())),
        bytes(12, &bytes(1, b"y")),
    ]
    .concat();
    let entry = [bytes(1, b"character"), bytes(2, "a\né".as_bytes())].concat();
    [model(&graph), bytes(14, &entry)].concat()
}

#[test]
fn a_file_says_what_it_holds() {
    let onnx = Onnx::read(&good()).unwrap();
    assert_eq!(onnx.nodes.len(), 1);
    assert_eq!(
        (onnx.nodes[0].op.as_str(), onnx.nodes[0].inputs.as_slice()),
        ("Conv", ["x", "w"].map(String::from).as_slice())
    );
    assert_eq!(onnx.nodes[0].attributes["strides"], Attribute::Ints(vec![2, 1]));
    assert_eq!(onnx.nodes[0].attributes["group"], Attribute::Int(-3));
    assert_eq!(onnx.tensors["w"], Tensor { shape: vec![1, 2], data: Data::Floats(vec![0.5, -1.0]) });
    assert_eq!(onnx.tensors["three"], Tensor { shape: vec![], data: Data::Floats(vec![3.0]) });
    assert_eq!(onnx.tensors["axes"], Tensor { shape: vec![1], data: Data::Ints(vec![-1]) });
    assert_eq!(onnx.metadata["character"], "a\né");
    assert_eq!(onnx.outputs, ["y"]);
}

#[test]
fn lies_are_refused_by_name() {
    let check = |bytes: &[u8], words: &str| {
        let error = Onnx::read(bytes).expect_err(words).to_string();
        assert!(error.contains(words), "{error:?} should say {words:?}");
    };
    let holding = |tensor: Vec<u8>| model(&bytes(5, &tensor));
    check(b"", "0 graphs");
    check(b"this is no ONNX file", "unknown kind");
    check(&[model(&[]), model(&[])].concat(), "2 graphs");
    check(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01], "ends inside the model");
    check(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], "more than 64 bits");
    check(&holding(tensor("w", 1, &[i64::MAX, i64::MAX, 4], &floats(&[1.0]))), "\"w\" of shape");
    check(&holding(tensor("w", 1, &[1 << 40], &floats(&[1.0]))), "has 1 values");
    check(&holding(tensor("w", 1, &[-1], &floats(&[1.0]))), "negative dimension");
    check(&holding(tensor("w", 1, &[1; 9], &floats(&[1.0]))), "9 dimensions");
    check(&holding(tensor("w", 1, &[1], &[0; 5])), "no multiple of 4");
    check(&holding(tensor("w", 1, &[1], &floats(&[f32::NAN]))), "not finite");
    check(&holding(tensor("w", 11, &[1], &[0; 8])), "kind 11");
    check(&holding([tensor("w", 1, &[1], &[]), bytes(13, b"../../etc/passwd")].concat()), "another file");
    check(&holding(tensor(&"w".repeat(2000), 1, &[1], &floats(&[1.0]))), "name of 2000 bytes");
    check(&model(&[bytes(5, &tensor("w", 1, &[0], &[])), bytes(5, &tensor("w", 1, &[0], &[]))].concat()), "twice");
    check(&model(&bytes(1, &node("Constant", &[], "c"))), "constant \"c\"");
    check(&model(&bytes(1, &node("Add", &["x"; 65], "y"))), "more than 64 inputs");
    check(&model(&bytes(1, &bytes(4, &[0xff, 0xfe]))), "not UTF-8");
    check(&model(&bytes(1, b"").repeat(NODES_MAX + 1)), "more than 20000 nodes");
}

#[test]
fn a_file_cut_anywhere_is_an_error_or_a_smaller_file_and_never_a_panic() {
    let whole = good();
    for end in 0..whole.len() {
        if let Ok(onnx) = Onnx::read(&whole[..end]) {
            assert!(onnx.metadata.is_empty(), "cut at {end} of {}", whole.len());
        }
    }
    // Every byte turned in every way that matters: none may panic.
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut turned = whole.clone();
            turned[at] ^= 1 << bit;
            let _ = Onnx::read(&turned);
        }
    }
}
