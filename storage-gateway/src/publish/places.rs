//! The places this gateway publishes to: one lock and one ledger each, and a list that survives a restart.
//!
//! What is stored: a file per place in `STATE_DIR/places/`, holding its `nas://` URL and, on a second line, the principal who
//! used it first and so owns what lies in it: so that a start can roll forward, and the sweep knows where to look and as whom.
//! What isn't: anything else; losing the list loses nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ingle_proto::storage::Object;
use ingle_proto::{ErrorCode, Problem};

use crate::fence::replace_file;
use crate::ledger::store::Store;

/// A place's ledger, if it is in memory; the lock makes publishes take turns.
pub type Held = Arc<tokio::sync::Mutex<Option<Store>>>;

/// See the module.
pub struct Places {
    directory: PathBuf,
    held: Mutex<BTreeMap<String, Held>>,
}

impl Places {
    /// With its list below `state_dir`.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self { directory: state_dir.join("places"), held: Mutex::default() }
    }

    /// The lock of one place.
    #[must_use]
    pub fn get(&self, place: &Object) -> Held {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.entry(place.to_string()).or_default())
    }

    /// Puts a place on the list.
    ///
    /// # Errors
    /// `INTERNAL` with what the system said about the state directory.
    pub async fn remember(&self, place: &Object, principal: &str) -> Result<(), Problem> {
        let name = place.to_string();
        let file = self.directory.join(&blake3::hash(name.as_bytes()).to_hex()[..32]);
        let text = format!("{name}\n{principal}");
        let kept = tokio::task::spawn_blocking(move || {
            if file.exists() {
                return Ok(());
            }
            if let Some(directory) = file.parent() {
                std::fs::create_dir_all(directory)?;
            }
            replace_file(&file, text.as_bytes())
        });
        kept.await
            .map_err(|ended| Problem::new(ErrorCode::Internal, format!("remembering {place}: {ended}")))?
            .map_err(|error| Problem::new(ErrorCode::Internal, format!("{}: {error}", self.directory.display())))
    }

    /// The list, each with the principal who used it first.
    ///
    /// # Errors
    /// What the system said about the state directory.
    pub fn known(&self) -> std::io::Result<Vec<(Object, String)>> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut places = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some() {
                continue;
            }
            let text = std::fs::read_to_string(&path)?;
            let (name, principal) = text.split_once('\n').unwrap_or((&text, ""));
            match Object::parse(name.trim()) {
                Ok(place) => places.push((place, principal.to_owned())),
                Err(problem) => tracing::warn!(file = %path.display(), %problem, "is no place and was passed over"),
            }
        }
        places.sort_by_key(|(place, _)| place.to_string());
        Ok(places)
    }
}
