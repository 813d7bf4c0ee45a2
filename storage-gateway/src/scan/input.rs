//! What a job names as input, opened: one object, a tree, a glob, or texts given with the job.

use ingle_proto::storage::{OWN_DIRECTORY, Object};
use ingle_proto::v1::input_spec::Input;
use ingle_proto::{ErrorCode, ObjectPath, Problem, v1};

use super::pattern::Pattern;
use crate::blob::Blobs;
use crate::export::{Entry, Kind};
use crate::exports::Exports;
use crate::file::kind_name;
use crate::ledger::record::Root;

/// An opened input.
pub struct Source {
    /// Where names count. Texts given with the job are a root of their own: other texts never make them deleted.
    pub root: Root,
    /// What names are relative to; `None` for texts given with the job.
    pub base: Option<Object>,
    /// Inode number of the directory that is walked; 0 of anything else.
    pub base_id: u64,
    /// Which names below the base; all if `None`.
    pub pattern: Option<Pattern>,
    /// The one object, if it is one.
    pub single: Option<Entry>,
    /// Texts given with the job.
    pub texts: Vec<String>,
}

/// Checks an input and looks at what it names.
///
/// # Errors
/// `INVALID_ARGUMENT` and `PATH_REFUSED` for what can't be; `OBJECT_KIND` where a file or directory of the other kind
/// stands; those of the export.
pub async fn open(exports: &Exports, blobs: &Blobs, input: &Input, principal: &str) -> Result<Source, Problem> {
    match input {
        Input::Object(wire) => single(exports, visible("input.object", wire.clone())?, principal).await,
        Input::Tree(wire) => below(visible("input.tree", wire.clone())?, None, exports, principal).await,
        Input::Glob(glob) => {
            let base = glob.base.clone().ok_or_else(|| Problem::missing("input.glob.base"))?;
            let pattern = Pattern::new(&glob.pattern)?;
            below(visible("input.glob.base", base)?, Some(pattern), exports, principal).await
        }
        Input::Payload(blob) => {
            let payload: v1::InlineInput = blobs.message("input.payload", blob).await?;
            Ok(Source {
                root: Root { export: String::new(), base: blob.digest.to_vec() },
                base: None,
                base_id: 0,
                pattern: None,
                single: None,
                texts: payload.texts,
            })
        }
        Input::Inline(_) => Err(Problem::invalid("input.inline", "give texts as a payload blob: Stage it first")),
    }
}

fn visible(field: &str, wire: v1::ObjectRef) -> Result<Object, Problem> {
    let object = Object::try_from(wire)?;
    if object.path.components().any(|part| part == OWN_DIRECTORY) {
        return Err(Problem::new(
            ErrorCode::PathRefused,
            format!("{field}: {object} lies in .inglenook, which is never input"),
        ));
    }
    Ok(object)
}

fn root(base: &Object) -> Root {
    Root { export: base.export.clone(), base: base.path.as_bytes().to_vec() }
}

async fn single(exports: &Exports, object: Object, principal: &str) -> Result<Source, Problem> {
    let export = exports.get(&object, principal).await?;
    let attr = export.stat(&object.path).await?;
    if attr.kind == Kind::Directory {
        return Err(wrong_kind(&object, attr.kind, "a file; name it as a tree to take everything below"));
    }
    let name = object.path.file_name().to_vec();
    let base = Object { path: object.path.parent().unwrap_or_else(ObjectPath::root), export: object.export };
    Ok(Source {
        root: root(&base),
        base: Some(base),
        base_id: 0,
        pattern: None,
        single: Some(Entry { name, attr }),
        texts: Vec::new(),
    })
}

async fn below(base: Object, pattern: Option<Pattern>, exports: &Exports, principal: &str) -> Result<Source, Problem> {
    let export = exports.get(&base, principal).await?;
    let attr = export.stat(&base.path).await?;
    // Whoever types a path need not know whether a file or a directory has it.
    if attr.kind == Kind::File && pattern.is_none() {
        return single(exports, base, principal).await;
    }
    if attr.kind != Kind::Directory {
        return Err(wrong_kind(&base, attr.kind, "a directory or a file"));
    }
    Ok(Source { root: root(&base), base: Some(base), base_id: attr.file_id, pattern, single: None, texts: Vec::new() })
}

fn wrong_kind(object: &Object, found: Kind, expected: &str) -> Problem {
    Problem::new(ErrorCode::ObjectKind, format!("{object}: is {}, expected {expected}", kind_name(found)))
}
