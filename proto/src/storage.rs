//! Objects on the NAS: paths that can't leave their root, digests, and the `nas://EXPORT/path` form people type.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, percent_encode};

use crate::error::Problem;
use crate::{ErrorCode, v1};

/// Longest path below an export, in bytes.
pub const PATH_BYTES_MAX: usize = 4096;
/// Longest component, in bytes (`NAME_MAX` of every file system we know).
pub const COMPONENT_BYTES_MAX: usize = 255;
/// Our own directory in an output place; never input, never listed.
pub const OWN_DIRECTORY: &[u8] = b".inglenook";

/// A path below an export's root: components of bytes joined by `/`. Empty is the root itself.
///
/// It can't be absolute, hold `.`, `..`, an empty component or NUL, nor exceed 4096 bytes (255 a component).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ObjectPath(Vec<u8>);

impl ObjectPath {
    /// The export's root.
    #[must_use]
    pub fn root() -> Self {
        Self::default()
    }

    /// Checks and takes a path.
    ///
    /// # Errors
    /// `PATH_REFUSED` says which rule it breaks.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Problem> {
        let bytes = bytes.into();
        let refuse = |why: &str| {
            Err(Problem::new(ErrorCode::PathRefused, format!("path {:?} {why}", String::from_utf8_lossy(&bytes))))
        };
        if bytes.is_empty() {
            return Ok(Self(bytes));
        }
        if bytes.len() > PATH_BYTES_MAX {
            return Err(Problem::new(
                ErrorCode::PathRefused,
                format!("path of {} bytes is longer than {PATH_BYTES_MAX}", bytes.len()),
            ));
        }
        for component in bytes.split(|b| *b == b'/') {
            match component {
                b"" => return refuse("has an empty component (a leading, doubled or trailing '/')"),
                b"." | b".." => return refuse("has a component '.' or '..'"),
                c if c.len() > COMPONENT_BYTES_MAX => return refuse("has a component over 255 bytes"),
                c if c.contains(&0) => return refuse("holds a NUL byte"),
                _ => {}
            }
        }
        Ok(Self(bytes))
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The components, none for the root.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|c| !c.is_empty())
    }

    /// The last component; empty for the root.
    #[must_use]
    pub fn file_name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// The directory it lies in; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let cut = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        Some(Self(self.0[..cut].to_vec()))
    }

    /// The path of `name` below this one. `name` may have several components.
    ///
    /// # Errors
    /// `PATH_REFUSED` as in [`ObjectPath::new`].
    pub fn join(&self, name: &[u8]) -> Result<Self, Problem> {
        if self.is_root() {
            return Self::new(name);
        }
        if name.is_empty() {
            return Ok(self.clone());
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self::new(bytes)
    }

    /// What follows `base`, if this path is `base` or lies below it.
    #[must_use]
    pub fn below(&self, base: &Self) -> Option<&[u8]> {
        if base.is_root() {
            return Some(&self.0);
        }
        let rest = self.0.strip_prefix(base.as_bytes())?;
        match rest {
            b"" => Some(rest),
            [b'/', rest @ ..] => Some(rest),
            _ => None,
        }
    }

    /// For people: UTF-8 as it is, other bytes as `%XX`.
    #[must_use]
    pub fn display(&self) -> String {
        display_bytes(&self.0)
    }
}

impl std::fmt::Debug for ObjectPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.display())
    }
}

/// Bytes for people: UTF-8 as it is, other bytes and control characters as `%XX`. A `%` before two hexadecimal digits is
/// `%25`, so that different bytes are never shown alike, and decoding as in a `nas://` URL gives them back.
#[must_use]
pub fn display_bytes(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for (at, c) in chunk.valid().char_indices() {
            let next = chunk.valid().as_bytes().get(at + 1..at + 3);
            let like_an_escape = c == '%' && next.is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
            if c.is_control() || like_an_escape {
                let mut buffer = [0; 4];
                for b in c.encode_utf8(&mut buffer).bytes() {
                    let _ = write!(out, "%{b:02X}");
                }
            } else {
                out.push(c);
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "%{b:02X}");
        }
    }
    out
}

/// An object named as in a job: export and path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Object {
    /// Name of the export.
    pub export: String,
    /// Path below its root.
    pub path: ObjectPath,
}

/// What must be escaped in the path of a `nas://` URL: `%` itself, and what a shell or a person would trip over.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b'#').add(b'"').add(b'<').add(b'>').add(b'\\');

impl Object {
    /// Reads `nas://EXPORT/path`, percent-decoded. `nas://EXPORT` and `nas://EXPORT/` are its root.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `PATH_REFUSED` says what is wrong with it.
    pub fn parse(url: &str) -> Result<Self, Problem> {
        let rest = url
            .strip_prefix("nas://")
            .ok_or_else(|| Problem::invalid("url", format!("expected nas://EXPORT/path, got {url:?}")))?;
        let (export, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path: Vec<u8> = percent_decode_str(path.strip_suffix('/').unwrap_or(path)).collect();
        Ok(Self { export: export_name(export)?, path: ObjectPath::new(path)? })
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "nas://{}/{}", self.export, percent_encode(self.path.as_bytes(), ESCAPED))
    }
}

/// Checks an export's name: 1 to 63 characters of `a-z`, `A-Z`, `0-9`, `-`, `_`, `.`, beginning with a letter or digit.
///
/// # Errors
/// `INVALID_ARGUMENT` with the form expected.
pub fn export_name(name: &str) -> Result<String, Problem> {
    let ok = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.as_bytes()[0].is_ascii_alphanumeric();
    if ok {
        Ok(name.to_owned())
    } else {
        Err(Problem::invalid(
            "export",
            format!(
                "expected 1 to 63 letters, digits, '-', '_' or '.', beginning with a letter or digit; got {name:?}"
            ),
        ))
    }
}

impl TryFrom<v1::ObjectRef> for Object {
    type Error = Problem;
    fn try_from(wire: v1::ObjectRef) -> Result<Self, Problem> {
        Ok(Self { export: export_name(&wire.export)?, path: ObjectPath::new(wire.path)? })
    }
}

impl From<&Object> for v1::ObjectRef {
    fn from(object: &Object) -> Self {
        Self { export: object.export.clone(), path: object.path.as_bytes().to_vec().into() }
    }
}

/// A BLAKE3 digest, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// From the wire.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` if it isn't 32 bytes.
    pub fn from_wire(field: &str, bytes: &[u8]) -> Result<Self, Problem> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| Problem::invalid(field, format!("a BLAKE3 digest has 32 bytes, got {}", bytes.len())))
    }

    /// From hexadecimal, 64 characters.
    #[must_use]
    pub fn from_hex(hex: &str) -> Option<Self> {
        blake3::Hash::from_hex(hex).ok().map(Self::from)
    }

    /// Lower-case hexadecimal, 64 characters.
    #[must_use]
    pub fn hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// To the wire.
    #[must_use]
    pub fn to_wire(self) -> bytes::Bytes {
        bytes::Bytes::copy_from_slice(&self.0)
    }
}

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}…", &self.hex()[..12])
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_their_root() {
        for ok in ["", "a", "a/b", "ä/ö", ".hidden", "...", "a b/c%d", "%2e%2e"] {
            assert!(ObjectPath::new(ok).is_ok(), "{ok:?}");
        }
        let long = "x".repeat(256);
        let deep = "x/".repeat(3000);
        for bad in ["/", "/etc/passwd", "..", "a/..", "../a", "a//b", "a/", ".", "a/./b", "a\0b", &long, &deep] {
            let problem = ObjectPath::new(bad).expect_err(bad);
            assert_eq!(problem.code, ErrorCode::PathRefused);
        }
    }

    #[test]
    fn urls_are_decoded_once() {
        let object = Object::parse("nas://docs/caf%C3%A9/100%25.md").unwrap();
        assert_eq!(object.path.as_bytes(), "café/100%.md".as_bytes());
        assert_eq!(Object::parse(&object.to_string()).unwrap(), object);
        // Encoded dots are dots: refused like plain ones.
        assert!(Object::parse("nas://docs/%2e%2e/secret").is_err());
        // A doubly encoded one is a name with a percent sign.
        assert_eq!(Object::parse("nas://docs/%252e%252e").unwrap().path.as_bytes(), b"%2e%2e");
        assert_eq!(Object::parse("nas://docs").unwrap().path, ObjectPath::root());
        assert_eq!(Object::parse("nas://docs/a/").unwrap().path.as_bytes(), b"a");
        let latin1 = Object::parse("nas://docs/caf%E9.md").unwrap();
        assert_eq!(latin1.path.as_bytes(), b"caf\xe9.md");
        assert_eq!(Object::parse(&latin1.to_string()).unwrap(), latin1);
        for bad in ["docs/a", "nas://", "nas:///a", "nas://a b/c", "nas://-x/c", "file:///etc"] {
            assert!(Object::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_shown_is_unmistakable() {
        assert_eq!(display_bytes(b"100%.md"), "100%.md");
        assert_eq!(display_bytes(b"a\xFF"), "a%FF");
        assert_eq!(display_bytes(b"a%FF"), "a%25FF");
        assert_eq!(display_bytes(b"a%25FF"), "a%2525FF");
        // All names of up to four of these pieces: shown, each has its own form, and reads back as itself.
        let pieces: [&[u8]; 6] = [b"%", b"2", b"f", b"\xFF", b"\n", "é".as_bytes()];
        let mut shown = std::collections::BTreeSet::new();
        let mut names = vec![Vec::new()];
        for _ in 0..4 {
            names = names.iter().flat_map(|name| pieces.map(|piece| [name.as_slice(), piece].concat())).collect();
            for name in &names {
                let form = display_bytes(name);
                assert_eq!(percent_decode_str(&form).collect::<Vec<u8>>(), *name, "{form:?}");
                assert!(shown.insert(form));
            }
        }
    }

    #[test]
    fn below_and_parent() {
        let base = ObjectPath::new("a/b").unwrap();
        assert_eq!(ObjectPath::new("a/b/c").unwrap().below(&base), Some(b"c".as_slice()));
        assert_eq!(ObjectPath::new("a/bc").unwrap().below(&base), None);
        assert_eq!(base.below(&ObjectPath::root()), Some(b"a/b".as_slice()));
        assert_eq!(base.parent().unwrap().as_bytes(), b"a");
        assert_eq!(ObjectPath::new("a").unwrap().parent(), Some(ObjectPath::root()));
        assert_eq!(ObjectPath::root().parent(), None);
        assert_eq!(base.file_name(), b"b");
    }
}
