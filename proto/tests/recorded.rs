//! What the contract promised stays: a recorded older version of it is compared with today's, and what a later one may say is
//! understood by both.
//!
//! `recorded/VERSION` holds the contract as that version had it; it is never edited, and each release adds its own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumValueDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use protox::prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, Value,
};

const FILES: [&str; 7] = ["types", "registry", "storage", "jobs", "inference", "node", "cluster"];
/// A field and an enum's value that no version has.
const LATER_FIELD: i32 = 15_000;
const LATER_VALUE: i32 = 9_999;
/// How deep messages are filled: some hold each other.
const DEPTH: u32 = 3;

fn compiled(folder: &str) -> FileDescriptorSet {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(folder);
    let files = FILES.map(|name| format!("ingle/v1/{name}.proto"));
    protox::compile(files, [root]).unwrap_or_else(|error| panic!("{folder}: {error}"))
}

fn pool(set: FileDescriptorSet) -> DescriptorPool {
    DescriptorPool::from_file_descriptor_set(set).expect("protox made it")
}

/// Versions that are recorded, oldest first.
fn recorded() -> Vec<(String, DescriptorPool)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("recorded");
    let entries = std::fs::read_dir(folder).expect("there are recorded versions").flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert!(names.iter().any(|name| name == "0.1"), "{names:?}");
    names.into_iter().map(|name| (name.clone(), pool(compiled(&format!("recorded/{name}"))))).collect()
}

fn today() -> DescriptorPool {
    pool(compiled("."))
}

/// A version after today's: each message has one field more, each enum one value.
fn later() -> DescriptorPool {
    fn extend(message: &mut DescriptorProto) {
        message.nested_type.iter_mut().for_each(extend);
        message.enum_type.iter_mut().for_each(extend_enum);
        if message.options.as_ref().is_none_or(|options| !options.map_entry()) {
            message.field.push(FieldDescriptorProto {
                name: Some("told_by_a_later_version".into()),
                number: Some(LATER_FIELD),
                label: Some(Label::Optional.into()),
                r#type: Some(Type::String.into()),
                ..FieldDescriptorProto::default()
            });
        }
    }
    fn extend_enum(of: &mut prost_types::EnumDescriptorProto) {
        let name = format!("{}_OF_A_LATER_VERSION", of.name().to_uppercase());
        let value = EnumValueDescriptorProto { name: Some(name), number: Some(LATER_VALUE), options: None };
        of.value.push(value);
    }
    let mut set = compiled(".");
    for file in set.file.iter_mut().filter(|file| file.package() == "ingle.v1") {
        file.message_type.iter_mut().for_each(extend);
        file.enum_type.iter_mut().for_each(extend_enum);
    }
    pool(set)
}

fn ours(pool: &DescriptorPool) -> impl Iterator<Item = MessageDescriptor> {
    pool.all_messages().filter(|message| message.package_name() == "ingle.v1" && !message.is_map_entry())
}

/// A message with every field set to something that isn't its default; of each oneof the `turn`-th.
fn filled(of: &MessageDescriptor, turn: usize, depth: u32) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    for field in of.fields() {
        if let Some(oneof) = field.containing_oneof() {
            let choices: Vec<FieldDescriptor> = oneof.fields().collect();
            if choices[turn % choices.len()].number() != field.number() {
                continue;
            }
        }
        if let Some(value) = value(&field, turn, depth) {
            message.set_field(&field, value);
        }
    }
    message
}

fn value(field: &FieldDescriptor, turn: usize, depth: u32) -> Option<Value> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return None };
        let key = match entry.map_entry_key_field().kind() {
            Kind::String => MapKey::String("key".into()),
            Kind::Uint64 => MapKey::U64(7),
            Kind::Uint32 => MapKey::U32(7),
            other => panic!("{}: a map by {other:?} is new here", field.full_name()),
        };
        let value = single(&entry.map_entry_value_field(), turn, depth)?;
        return Some(Value::Map([(key, value)].into_iter().collect()));
    }
    let single = single(field, turn, depth)?;
    Some(match single {
        single if !field.is_list() => single,
        // One of each: there are enough of them.
        Value::Message(_) => Value::List(vec![single]),
        single => Value::List(vec![single.clone(), single]),
    })
}

fn single(field: &FieldDescriptor, turn: usize, depth: u32) -> Option<Value> {
    let number = field.number();
    Some(match field.kind() {
        Kind::Double => Value::F64(f64::from(number) + 0.5),
        Kind::Float => Value::F32(0.5),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(-3),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(i64::from(number) - 1_000_000),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(u64::from(number) << 33),
        Kind::Bool => Value::Bool(true),
        Kind::String => Value::String(format!("text {number} ä")),
        Kind::Bytes => Value::Bytes(vec![0, 255, number as u8].into()),
        // The greatest value that its version knows.
        Kind::Enum(of) => Value::EnumNumber(of.values().map(|value| value.number()).max().unwrap_or(0)),
        Kind::Message(of) if depth > 0 => Value::Message(filled(&of, turn, depth - 1)),
        Kind::Message(_) => return None,
    })
}

/// How many fillings show every choice of every oneof.
fn turns(of: &MessageDescriptor) -> usize {
    let of_nested = of.fields().filter_map(|field| match field.kind() {
        Kind::Message(nested) => Some(nested.oneofs().map(|oneof| oneof.fields().len()).max().unwrap_or(1)),
        _ => None,
    });
    of.oneofs().map(|oneof| oneof.fields().len()).chain(of_nested).max().unwrap_or(1)
}

fn named(kind: &Kind) -> String {
    match kind {
        Kind::Message(message) => message.full_name().to_owned(),
        Kind::Enum(of) => of.full_name().to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn nothing_that_was_promised_is_taken_back() {
    let today = today();
    let mut broken = Vec::new();
    for (version, then) in recorded() {
        for message in ours(&then) {
            let name = message.full_name();
            let Some(now) = today.get_message_by_name(name) else {
                broken.push(format!("{version}: message {name} is gone"));
                continue;
            };
            for field in message.fields() {
                let (number, what) = (field.number(), field.full_name().to_owned());
                let Some(same) = now.get_field(number) else {
                    broken.push(format!("{version}: field {what} = {number} is gone"));
                    continue;
                };
                let oneof = |field: &FieldDescriptor| field.containing_oneof().map(|oneof| oneof.name().to_owned());
                let list = |field: &FieldDescriptor| field.cardinality() == Cardinality::Repeated;
                let (kind, kind_now) = (named(&field.kind()), named(&same.kind()));
                let changes = [
                    (field.name() != same.name(), format!("its name, now {}", same.name())),
                    (kind != kind_now, format!("its type, {kind}, now {kind_now}")),
                    (list(&field) != list(&same), "whether it is repeated".to_owned()),
                    (oneof(&field) != oneof(&same), "its oneof".to_owned()),
                    (field.supports_presence() != same.supports_presence(), "whether it can be absent".to_owned()),
                ];
                let changed = changes.into_iter().filter(|(changed, _)| *changed);
                broken.extend(changed.map(|(_, words)| format!("{version}: field {what} = {number} changed {words}")));
            }
        }
        for of in then.all_enums().filter(|of| of.package_name() == "ingle.v1") {
            let now = today.get_enum_by_name(of.full_name());
            for value in of.values() {
                let same = now.as_ref().and_then(|now| now.get_value(value.number()));
                if same.as_ref().map(|same| same.name()) != Some(value.name()) {
                    broken.push(format!("{version}: {} = {} is gone or another", value.full_name(), value.number()));
                }
            }
        }
        for service in then.services().filter(|service| service.package_name() == "ingle.v1") {
            let now = today.get_service_by_name(service.full_name());
            for rpc in service.methods() {
                let same = now.as_ref().and_then(|now| now.methods().find(|method| method.name() == rpc.name()));
                let shape = |rpc: &protox::prost_reflect::MethodDescriptor| {
                    let (asks, answers) = (rpc.input().full_name().to_owned(), rpc.output().full_name().to_owned());
                    (asks, answers, rpc.is_client_streaming(), rpc.is_server_streaming())
                };
                if same.as_ref().map(shape) != Some(shape(&rpc)) {
                    broken.push(format!("{version}: rpc {} is gone or another", rpc.full_name()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "fields are only added, and nothing is renamed:\n{}", broken.join("\n"));
}

#[test]
fn what_an_older_version_says_is_understood() {
    let today = today();
    for (version, then) in recorded() {
        for message in ours(&then) {
            let now = today.get_message_by_name(message.full_name()).expect("see above");
            for turn in 0..turns(&message) {
                let said = filled(&message, turn, DEPTH);
                let heard = DynamicMessage::decode(now.clone(), said.encode_to_vec().as_slice()).expect("decodes");
                assert_eq!(heard.unknown_fields().count(), 0, "{version}: {}", message.full_name());
                let back = DynamicMessage::decode(message.clone(), heard.encode_to_vec().as_slice());
                assert_eq!(back.expect("decodes"), said, "{version}: {}", message.full_name());
            }
        }
    }
}

#[test]
fn what_a_later_version_says_is_harmless_and_passes_through() {
    let (later, mut earlier) = (later(), recorded());
    earlier.push(("today".into(), today()));
    for message in ours(&later) {
        for turn in 0..turns(&message) {
            let said = filled(&message, turn, DEPTH);
            let bytes = said.encode_to_vec();
            for (version, pool) in &earlier {
                let Some(known) = pool.get_message_by_name(message.full_name()) else { continue };
                let heard = DynamicMessage::decode(known.clone(), bytes.as_slice())
                    .unwrap_or_else(|error| panic!("{version}: {}: {error}", message.full_name()));
                assert!(heard.unknown_fields().count() > 0, "{version}: {}", message.full_name());
                let back = DynamicMessage::decode(message.clone(), heard.encode_to_vec().as_slice());
                assert_eq!(back.expect("decodes"), said, "{version}: {}", message.full_name());
            }
        }
    }
}

/// Whether the code that daemons are made of takes the bytes, and what it makes of them.
type Takes = fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>;

fn takes<M: prost::Message + Default>(bytes: &[u8]) -> Result<Vec<u8>, prost::DecodeError> {
    M::decode(bytes).map(|message| message.encode_to_vec())
}

macro_rules! table {
    ($($name:ident),* $(,)?) => {
        vec![$((concat!("ingle.v1.", stringify!($name)), takes::<ingle_proto::v1::$name> as Takes)),*]
    };
}

#[test]
fn every_request_and_answer_of_then_is_taken_from_older_and_later_versions() {
    // What the RPCs of 0.1 carry.
    let table: Vec<(&str, Takes)> = table![
        BeatRequest,
        BeatResponse,
        CancelJobRequest,
        CancelJobResponse,
        DeleteRequest,
        DeleteResponse,
        DrainNodeRequest,
        DrainNodeResponse,
        EmbedRequest,
        EmbedResponse,
        ExplainFitRequest,
        ExplainFitResponse,
        ExplainJobRequest,
        ExplainJobResponse,
        ForgetRequest,
        ForgetResponse,
        GenerateRequest,
        GenerateResponse,
        GetJobRequest,
        GetJobResponse,
        GetStatusRequest,
        GetStatusResponse,
        GrantRequest,
        GrantResponse,
        KeepAliveRequest,
        KeepAliveResponse,
        ListExportsRequest,
        ListExportsResponse,
        ListItemsRequest,
        ListItemsResponse,
        ListJobsRequest,
        ListJobsResponse,
        ListModelsRequest,
        ListModelsResponse,
        ListNodesRequest,
        ListNodesResponse,
        ListRequest,
        ListResponse,
        LoadModelRequest,
        LoadModelResponse,
        OcrRequest,
        OcrResponse,
        PauseJobRequest,
        PauseJobResponse,
        PublishRequest,
        PublishResponse,
        PutRequest,
        PutResponse,
        RangesRequest,
        RangesResponse,
        ReadRequest,
        ReadResponse,
        RegistryListRequest,
        RegistryListResponse,
        ResumeJobRequest,
        ResumeJobResponse,
        RevokeRequest,
        RevokeResponse,
        ScanRequest,
        ScanResponse,
        StageRequest,
        StageResponse,
        StatRequest,
        StatResponse,
        SubmitJobRequest,
        SubmitJobResponse,
        UncordonNodeRequest,
        UncordonNodeResponse,
        UnloadModelRequest,
        UnloadModelResponse,
        WatchJobRequest,
        WatchJobResponse,
        WatchRequest,
        WatchResponse,
        WorkRequest,
        WorkResponse
    ];
    let (later, today, recorded) = (later(), today(), recorded());
    let (_, first) = recorded.iter().find(|(version, _)| version == "0.1").expect("recorded");
    let carried: BTreeSet<String> = first
        .services()
        .filter(|service| service.package_name() == "ingle.v1")
        .flat_map(|service| service.methods().flat_map(|rpc| [rpc.input(), rpc.output()]).collect::<Vec<_>>())
        .map(|message| message.full_name().to_owned())
        .collect();
    assert_eq!(table.iter().map(|(name, _)| (*name).to_owned()).collect::<BTreeSet<_>>(), carried);
    for (name, takes) in table {
        for pool in [first, &later] {
            let message = pool.get_message_by_name(name).expect("it was never taken back");
            for turn in 0..turns(&message) {
                let said = filled(&message, turn, DEPTH);
                let kept = takes(&said.encode_to_vec()).unwrap_or_else(|error| panic!("{name}: {error}"));
                // What we know of it came through unchanged, unknown values of enums as their number.
                let ours = today.get_message_by_name(name).expect("ours");
                let mut expected =
                    DynamicMessage::decode(ours.clone(), said.encode_to_vec().as_slice()).expect("decodes");
                forget_unknown(&mut expected);
                let kept = DynamicMessage::decode(ours, kept.as_slice()).expect("decodes");
                assert_eq!(kept, expected, "{name}");
            }
        }
    }
}

/// As a program reads it that doesn't keep what it doesn't know.
fn forget_unknown(message: &mut DynamicMessage) {
    drop(message.take_unknown_fields().collect::<Vec<_>>());
    let fields: Vec<FieldDescriptor> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        match message.get_field_mut(&field) {
            Value::Message(nested) => forget_unknown(nested),
            Value::List(list) => list.iter_mut().for_each(forget_in),
            Value::Map(map) => map.values_mut().for_each(forget_in),
            _ => {}
        }
    }
}

fn forget_in(value: &mut Value) {
    if let Value::Message(nested) = value {
        forget_unknown(nested);
    }
}
