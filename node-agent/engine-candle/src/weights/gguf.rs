//! GGUF headers, versions 2 and 3: typed metadata, then the tensors' table, then aligned data.

use std::collections::BTreeMap;
use std::io::Read;

use super::file::Cursor;
use super::{HeaderError, NAME_BYTES_MAX, TENSORS_MAX, bad, elements, refuse_overlap};

/// Longest header in bytes; vocabularies of 256,000 tokens with their merges take about 12 MB.
pub const HEADER_BYTES_MAX: u64 = 100 << 20;
/// Longest string value in bytes: chat templates have tens of kilobytes.
const STRING_BYTES_MAX: u64 = 4 << 20;
/// Most entries of one array.
const ARRAY_ITEMS_MAX: u64 = 4 << 20;
const KEYS_MAX: u64 = 100_000;
const DIMENSIONS_MAX: u32 = 4;
const ALIGNMENT_MAX: u64 = 1 << 20;

/// A value of the metadata, widened.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any integer type that fits.
    Int(i64),
    /// A 64-bit unsigned integer beyond i64.
    Big(u64),
    /// 32 or 64 bits.
    Float(f64),
    /// One byte, 0 or 1.
    Bool(bool),
    /// Text; bytes outside UTF-8 were replaced.
    Text(String),
    /// Array of text.
    Texts(Vec<String>),
    /// Array of 32- or 64-bit integers.
    Ints(Vec<i64>),
    /// Array of 32-bit floats.
    Floats(Vec<f32>),
    /// An array that nothing of ours reads, passed over; its number of entries.
    Skipped(u64),
}

/// How a tensor's values are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantisation {
    /// Number in the format.
    pub id: u32,
    /// Name, as in the ecosystem.
    pub name: &'static str,
    /// Values per block.
    pub block: u64,
    /// Bytes per block.
    pub bytes: u64,
}

const fn kind(id: u32, name: &'static str, block: u64, bytes: u64) -> Quantisation {
    Quantisation { id, name, block, bytes }
}

/// The storage types that candle's CPU path can read.
pub const QUANTISATIONS: [Quantisation; 14] = [
    kind(0, "F32", 1, 4),
    kind(1, "F16", 1, 2),
    kind(2, "Q4_0", 32, 18),
    kind(3, "Q4_1", 32, 20),
    kind(6, "Q5_0", 32, 22),
    kind(7, "Q5_1", 32, 24),
    kind(8, "Q8_0", 32, 34),
    kind(10, "Q2_K", 256, 84),
    kind(11, "Q3_K", 256, 110),
    kind(12, "Q4_K", 256, 144),
    kind(13, "Q5_K", 256, 176),
    kind(14, "Q6_K", 256, 210),
    kind(15, "Q8_K", 256, 292),
    kind(30, "BF16", 1, 2),
];

/// One tensor: shape, storage, and its checked place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Dimensions, slowest first (the file has them the other way round); none is zero.
    pub shape: Vec<usize>,
    /// Storage.
    pub quantisation: Quantisation,
    /// First byte after the header's padding.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorPlace>,
    /// Where the tensors' offsets count from.
    pub data_begin: u64,
}

impl Header {
    /// Text under `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key) {
            Some(Value::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// Whole number under `key` that fits 32 bits.
    #[must_use]
    pub fn number(&self, key: &str) -> Option<u32> {
        match self.metadata.get(key) {
            Some(Value::Int(value)) => u32::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Number under `key`.
    #[must_use]
    pub fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// Truth under `key`.
    #[must_use]
    pub fn truth(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => Some(*value),
            _ => None,
        }
    }
}

/// Reads and checks a header. `file_length` is the whole file's.
///
/// # Errors
/// [`HeaderError`] says what was expected and what was found.
pub fn read_header(reader: impl Read, file_length: u64) -> Result<Header, HeaderError> {
    let mut cursor = Cursor::new(reader, file_length.min(HEADER_BYTES_MAX));
    let magic = cursor.bytes("the magic number", 4)?;
    if magic != b"GGUF" {
        return bad(format!("begins with {magic:?}, a GGUF file begins with \"GGUF\""));
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return bad(format!("is of GGUF version {version}, versions 2 and 3 (little-endian) are read"));
    }
    let tensor_count = cursor.u64("the number of tensors")?;
    let key_count = cursor.u64("the number of keys")?;
    if tensor_count > TENSORS_MAX || key_count > KEYS_MAX {
        return bad(format!(
            "claims {tensor_count} tensors and {key_count} keys, at most {TENSORS_MAX} and {KEYS_MAX} are read"
        ));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..key_count {
        let key = string(&mut cursor, "a key", NAME_BYTES_MAX)?;
        let value = value(&mut cursor, &key)?;
        if metadata.insert(key.clone(), value).is_some() {
            return bad(format!("key {key:?} is there twice"));
        }
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = BTreeMap::new();
    for _ in 0..tensor_count {
        let (name, place) = tensor(&mut cursor, alignment)?;
        if tensors.insert(name.clone(), place).is_some() {
            return bad(format!("tensor {name:?} is there twice"));
        }
    }
    // The header is below 100 MiB and the alignment below 1 MiB: no overflow.
    let data_begin = cursor.at().div_ceil(alignment) * alignment;
    check_places(&tensors, data_begin, file_length)?;
    Ok(Header { metadata, tensors, data_begin })
}

fn check_places(tensors: &BTreeMap<String, TensorPlace>, data_begin: u64, file_length: u64) -> Result<(), HeaderError> {
    let data_length = file_length.saturating_sub(data_begin);
    let mut ranges = Vec::with_capacity(tensors.len());
    for (name, place) in tensors {
        let end = place.offset.checked_add(place.length).filter(|end| *end <= data_length);
        let Some(end) = end else {
            return bad(format!(
                "tensor {name:?} needs {} bytes at offset {}, the file's data has {data_length}",
                place.length, place.offset
            ));
        };
        ranges.push((place.offset, end, name.as_str()));
    }
    refuse_overlap(&mut ranges)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, HeaderError> {
    match metadata.get("general.alignment") {
        None => Ok(32),
        Some(Value::Int(value)) => match u64::try_from(*value) {
            Ok(value) if value.is_power_of_two() && value <= ALIGNMENT_MAX => Ok(value),
            _ => bad(format!("general.alignment must be a power of two up to {ALIGNMENT_MAX}, found {value}")),
        },
        Some(other) => bad(format!("general.alignment must be a number, found {other:?}")),
    }
}

fn tensor<R: Read>(cursor: &mut Cursor<R>, alignment: u64) -> Result<(String, TensorPlace), HeaderError> {
    let name = string(cursor, "a tensor's name", NAME_BYTES_MAX)?;
    let count = cursor.u32("a number of dimensions")?;
    if count == 0 || count > DIMENSIONS_MAX {
        return bad(format!("tensor {name:?} has {count} dimensions, 1 to {DIMENSIONS_MAX} are taken"));
    }
    let shape = (0..count).map(|_| cursor.u64("a dimension")).collect::<Result<Vec<_>, _>>()?;
    let id = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;
    let Some(quantisation) = QUANTISATIONS.iter().find(|kind| kind.id == id).copied() else {
        return bad(format!("tensor {name:?} is of type {id}, which can't be read here"));
    };
    let values = elements(&name, &shape)?;
    // Blocks lie along the fastest dimension, the first in the file.
    if !shape[0].is_multiple_of(quantisation.block) {
        return bad(format!(
            "tensor {name:?} has rows of {}, {} needs multiples of {}",
            shape[0], quantisation.name, quantisation.block
        ));
    }
    let Some(length) = (values / quantisation.block).checked_mul(quantisation.bytes) else {
        return bad(format!("the size of tensor {name:?} overflows: {shape:?}"));
    };
    if !offset.is_multiple_of(alignment) {
        return bad(format!("tensor {name:?} lies at offset {offset}, which is no multiple of {alignment}"));
    }
    let Ok(shape) = shape.iter().rev().map(|dimension| usize::try_from(*dimension)).collect::<Result<Vec<_>, _>>()
    else {
        return bad(format!("the dimensions of tensor {name:?} overflow: {shape:?}"));
    };
    Ok((name, TensorPlace { shape, quantisation, offset, length }))
}

fn string<R: Read>(cursor: &mut Cursor<R>, what: &str, limit: u64) -> Result<String, HeaderError> {
    let length = cursor.u64(what)?;
    if length > limit {
        return bad(format!("{what} at byte {} claims {length} bytes, at most {limit} are taken", cursor.at()));
    }
    Ok(String::from_utf8_lossy(&cursor.bytes(what, length)?).into_owned())
}

fn value<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, HeaderError> {
    let type_id = cursor.u32("a value's type")?;
    match type_id {
        8 => Ok(Value::Text(string(cursor, key, STRING_BYTES_MAX)?)),
        9 => array(cursor, key),
        _ => scalar(cursor, key, type_id),
    }
}

fn scalar<R: Read>(cursor: &mut Cursor<R>, key: &str, type_id: u32) -> Result<Value, HeaderError> {
    let Some(width) = scalar_bytes(type_id) else {
        return bad(format!("key {key:?} is of unknown type {type_id}"));
    };
    let bits = match width {
        1 => u64::from(cursor.u8(key)?),
        2 => u64::from(cursor.u8(key)?) | u64::from(cursor.u8(key)?) << 8,
        4 => u64::from(cursor.u32(key)?),
        _ => cursor.u64(key)?,
    };
    Ok(match type_id {
        0 | 2 | 4 => Value::Int(bits as i64),
        1 => Value::Int(i64::from(bits as u8 as i8)),
        3 => Value::Int(i64::from(bits as u16 as i16)),
        5 => Value::Int(i64::from(bits as u32 as i32)),
        6 => Value::Float(f64::from(f32::from_bits(bits as u32))),
        7 => match bits {
            0 | 1 => Value::Bool(bits == 1),
            other => return bad(format!("key {key:?} must be true or false, found {other}")),
        },
        10 => i64::try_from(bits).map_or(Value::Big(bits), Value::Int),
        11 => Value::Int(bits as i64),
        _ => Value::Float(f64::from_bits(bits)),
    })
}

fn scalar_bytes(type_id: u32) -> Option<u64> {
    Some(match type_id {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn array<R: Read>(cursor: &mut Cursor<R>, key: &str) -> Result<Value, HeaderError> {
    let type_id = cursor.u32("an array's type")?;
    let count = cursor.u64("an array's length")?;
    if type_id == 9 {
        return bad(format!("key {key:?} is an array of arrays, which no model needs"));
    }
    // A string takes its length's eight bytes at least.
    let least = if type_id == 8 { Some(8) } else { scalar_bytes(type_id) };
    let Some(least) = least else {
        return bad(format!("key {key:?} is an array of unknown type {type_id}"));
    };
    if count > ARRAY_ITEMS_MAX || count.saturating_mul(least) > cursor.left() {
        return bad(format!("key {key:?} claims {count} entries, where {} bytes are left", cursor.left()));
    }
    match type_id {
        8 => (0..count).map(|_| string(cursor, key, NAME_BYTES_MAX)).collect::<Result<_, _>>().map(Value::Texts),
        4 | 5 | 10 | 11 => {
            let mut items = Vec::with_capacity(count as usize);
            for _ in 0..count {
                match scalar(cursor, key, type_id)? {
                    Value::Int(item) => items.push(item),
                    other => return bad(format!("key {key:?} holds {other:?}, beyond 63 bits")),
                }
            }
            Ok(Value::Ints(items))
        }
        6 => (0..count).map(|_| cursor.u32(key).map(f32::from_bits)).collect::<Result<_, _>>().map(Value::Floats),
        _ => {
            let mut left = count * least;
            while left > 0 {
                let part = left.min(64 << 10);
                cursor.bytes(key, part)?;
                left -= part;
            }
            Ok(Value::Skipped(count))
        }
    }
}
