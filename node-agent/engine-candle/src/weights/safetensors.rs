//! Safetensors headers: a length, a JSON table of tensors, and the bytes they divide among them without holes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

use super::file::Cursor;
use super::{HeaderError, NAME_BYTES_MAX, TENSORS_MAX, bad, elements, refuse_overlap};

/// Longest header in bytes. The format allows 100 MB; real ones have below 1 MB, and JSON takes several times its length in memory.
pub const HEADER_BYTES_MAX: u64 = 32 << 20;
const DIMENSIONS_MAX: usize = 8;

/// Storage of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, IEEE.
    F16,
    /// 16-bit floats, brain.
    Bf16,
    /// Something without weights for us, of this many bytes per value: indices, masks.
    Other(u64),
}

impl Storage {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "F32" => Self::F32,
            "F16" => Self::F16,
            "BF16" => Self::Bf16,
            "F64" | "I64" | "U64" => Self::Other(8),
            "I32" | "U32" => Self::Other(4),
            "I16" | "U16" => Self::Other(2),
            "I8" | "U8" | "BOOL" | "F8_E4M3" | "F8_E5M2" => Self::Other(1),
            _ => return None,
        })
    }

    /// Bytes per value.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Other(bytes) => bytes,
        }
    }
}

/// One tensor: shape, storage, and its checked place in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlace {
    /// Dimensions, slowest first; none is zero.
    pub shape: Vec<usize>,
    /// How values are stored.
    pub storage: Storage,
    /// First byte in the file.
    pub begin: u64,
    /// Bytes.
    pub length: u64,
}

/// All tensors of one file, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorPlace>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

struct Table(BTreeMap<String, Entry>);

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Rows;
        impl<'de> Visitor<'de> for Rows {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut rows = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else if rows.len() as u64 >= TENSORS_MAX {
                        return Err(serde::de::Error::custom(format!("more than {TENSORS_MAX} tensors")));
                    } else if let Some(_earlier) = rows.insert(name.clone(), map.next_value::<Entry>()?) {
                        return Err(serde::de::Error::custom(format!("tensor {name:?} is there twice")));
                    }
                }
                Ok(Table(rows))
            }
        }
        deserializer.deserialize_map(Rows)
    }
}

/// Reads and checks a header. `file_length` is the whole file's.
///
/// # Errors
/// [`HeaderError`] says what was expected and what was found.
pub fn read_header(reader: impl Read, file_length: u64) -> Result<Header, HeaderError> {
    let mut cursor = Cursor::new(reader, file_length);
    let length = cursor.u64("the length of the header")?;
    if length > HEADER_BYTES_MAX {
        return bad(format!("the header claims {length} bytes, at most {HEADER_BYTES_MAX} are read"));
    }
    if length > cursor.left() {
        return bad(format!("the header claims {length} bytes, the file has {} after it begins", cursor.left()));
    }
    let json = cursor.bytes("the header", length)?;
    let data_begin = cursor.at();
    let data_length = cursor.left();
    let Table(rows) = serde_json::from_slice(&json)
        .map_err(|error| HeaderError(format!("the header is no table of tensors: {error}")))?;
    let mut tensors = BTreeMap::new();
    for (name, entry) in rows {
        let place = place(&name, &entry, data_begin, data_length)?;
        tensors.insert(name, place);
    }
    let mut ranges: Vec<_> =
        tensors.iter().map(|(name, place)| (place.begin, place.begin + place.length, name.as_str())).collect();
    refuse_overlap(&mut ranges)?;
    let named: u64 = tensors.values().map(|place| place.length).sum();
    if named != data_length {
        return bad(format!("the tensors have {named} bytes, the file holds {data_length} for them"));
    }
    Ok(Header { tensors })
}

fn place(name: &str, entry: &Entry, data_begin: u64, data_length: u64) -> Result<TensorPlace, HeaderError> {
    if name.len() as u64 > NAME_BYTES_MAX {
        return bad(format!("a tensor's name has {} bytes, at most {NAME_BYTES_MAX} are taken", name.len()));
    }
    let Some(storage) = Storage::parse(&entry.dtype) else {
        return bad(format!("tensor {name:?} is of unknown type {:?}", entry.dtype));
    };
    if entry.shape.len() > DIMENSIONS_MAX {
        return bad(format!(
            "tensor {name:?} has {} dimensions, at most {DIMENSIONS_MAX} are taken",
            entry.shape.len()
        ));
    }
    let values = elements(name, &entry.shape)?;
    let (begin, end) = entry.data_offsets;
    if begin > end || end > data_length {
        return bad(format!("tensor {name:?} lies at {begin} to {end}, the file's data has {data_length} bytes"));
    }
    if values.checked_mul(storage.bytes()) != Some(end - begin) {
        return bad(format!(
            "tensor {name:?} of shape {:?} and type {} doesn't fill its {} bytes",
            entry.shape,
            entry.dtype,
            end - begin
        ));
    }
    // All dimensions are at least one and their product is at most the file's length.
    let shape = entry.shape.iter().map(|dimension| *dimension as usize).collect();
    Ok(TensorPlace { shape, storage, begin: data_begin + begin, length: end - begin })
}
