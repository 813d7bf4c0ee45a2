//! The exports by name: opened when first needed, and again after they could not be, so that a NAS that is down at the
//! start stops nobody.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ingle_proto::storage::{Object, export_name};
use ingle_proto::{ErrorCode, ObjectPath, Problem, v1};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{Config, ExportConfig, STATE_EXPORT};
use crate::export::iscsi::IscsiExport;
use crate::export::local::{LocalExport, Standing};
use crate::export::nfs::NfsExport;
use crate::export::{Export, ExportError};
use crate::limits::PROBE_DEADLINE;
use crate::metered::{self, Metered};
use crate::metrics::Meters;
use crate::principals::Principals;
use crate::rules::Rules;
use crate::views::Views;

/// After an export could not be opened, how long the same answer is given without asking again.
const REOPEN_AFTER: Duration = Duration::from_millis(500);

struct Slot {
    name: String,
    config: ExportConfig,
    rules: Rules,
    /// Ours alone: its directory is made.
    ours: bool,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    export: Option<Arc<dyn Export>>,
    /// The same as principals see it.
    views: Views,
    /// The same, if it is a directory of this machine: a disk may be mounted over it.
    local: Option<LocalExport>,
    failed: Option<(Instant, ExportError)>,
}

/// See the module.
pub struct Exports {
    slots: BTreeMap<String, Slot>,
    principals: Principals,
    meters: Meters,
}

impl Exports {
    /// Those of the configuration. Opens nothing.
    #[must_use]
    pub fn new(config: &Config, meters: Meters) -> Self {
        let list = config.exports.iter().map(|(name, export)| (name.clone(), export.clone()));
        let principals = Principals::new(&config.principals, config.principals_default);
        Self { principals, ..Self::from_list(list, false, meters) }
    }

    /// The state export alone, under the name that errors and metrics give it.
    #[must_use]
    pub fn state(config: &Config, meters: Meters) -> Self {
        Self::from_list([(STATE_EXPORT.to_owned(), config.state_export())], true, meters)
    }

    /// None yet: see [`Exports::with`].
    #[must_use]
    pub fn empty(meters: Meters) -> Self {
        Self::from_list([], false, meters)
    }

    fn from_list(list: impl IntoIterator<Item = (String, ExportConfig)>, ours: bool, meters: Meters) -> Self {
        let slot = |(name, config): (String, ExportConfig)| {
            let rules = Rules::new(&name, &config).expect("the settings are checked when they are loaded");
            (name.clone(), Slot { name, config, rules, ours, opened: Mutex::default() })
        };
        Self { slots: list.into_iter().map(slot).collect(), principals: Principals::default(), meters }
    }

    /// Adds an export that is open already.
    #[must_use]
    pub fn with(mut self, name: &str, export: Arc<dyn Export>) -> Self {
        let config = ExportConfig { url: export.url(), ..ExportConfig::default() };
        let opened = Mutex::new(Opened { export: Some(export), ..Opened::default() });
        let slot = Slot { name: name.to_owned(), config, rules: Rules::default(), ours: false, opened };
        self.slots.insert(name.to_owned(), slot);
        self
    }

    /// Their names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.slots.keys().cloned().collect()
    }

    fn slot(&self, name: &str) -> Result<&Slot, Problem> {
        self.slots.get(name).ok_or_else(|| match export_name(name) {
            Err(problem) => problem,
            Ok(_) => Problem::new(
                ErrorCode::ExportNotFound,
                format!("no export {name:?}; this gateway serves {}", self.names().join(", ")),
            ),
        })
    }

    /// An export as the gateway itself sees it.
    ///
    /// # Errors
    /// `EXPORT_NOT_FOUND`; `STORAGE_UNAVAILABLE` and others if it can't be opened now.
    pub async fn ours(&self, name: &str) -> Result<Arc<dyn Export>, Problem> {
        self.open(self.slot(name)?).await
    }

    /// What an operator allows of an export.
    ///
    /// # Errors
    /// `EXPORT_NOT_FOUND`.
    pub fn rules(&self, name: &str) -> Result<&Rules, Problem> {
        Ok(&self.slot(name)?.rules)
    }

    /// The export of an object that a principal is to read, as that principal sees it.
    ///
    /// # Errors
    /// As [`Exports::ours`]; `PATH_REFUSED` for a hidden name; `STORAGE_DENIED` for a principal that is nobody on the NAS.
    pub async fn get(&self, object: &Object, principal: &str) -> Result<Arc<dyn Export>, Problem> {
        let slot = self.slot(&object.export)?;
        slot.rules.may_name(object)?;
        self.seen_by(slot, principal).await
    }

    /// The export of a place that a principal's results go to, as that principal sees it.
    ///
    /// # Errors
    /// As [`Exports::get`]; `EXPORT_READ_ONLY` where the settings let nothing be written.
    pub async fn writable(&self, place: &Object, principal: &str) -> Result<Arc<dyn Export>, Problem> {
        let name = &place.export;
        let slot = self.slot(name)?;
        slot.rules.may_name(place)?;
        slot.rules.may_hold(place)?;
        let read_only = || {
            Problem::new(
                ErrorCode::ExportReadOnly,
                format!(
                    "export {name:?} is read-only; choose another for results, or set exports.{name}.read_only = false"
                ),
            )
        };
        if slot.config.read_only {
            return Err(read_only());
        }
        let export = self.seen_by(slot, principal).await?;
        if export.abilities().await?.write { Ok(export) } else { Err(read_only()) }
    }

    async fn seen_by(&self, slot: &Slot, principal: &str) -> Result<Arc<dyn Export>, Problem> {
        let user = self.principals.user(principal)?;
        let mut opened = slot.opened.lock().await;
        let export = self.open_in(slot, &mut opened).await?;
        Ok(match user {
            Some(user) => opened.views.of(&export, user),
            None => export,
        })
    }

    async fn open(&self, slot: &Slot) -> Result<Arc<dyn Export>, Problem> {
        self.open_in(slot, &mut *slot.opened.lock().await).await
    }

    async fn open_in(&self, slot: &Slot, opened: &mut Opened) -> Result<Arc<dyn Export>, Problem> {
        if let Some(export) = &opened.export {
            let standing = match &opened.local {
                Some(local) => local.standing().await?,
                None => Standing::Same,
            };
            match standing {
                Standing::Same => return Ok(Arc::clone(export)),
                // Whoever works on the old one ends there; nobody begins.
                Standing::Another => tracing::info!(export = slot.name, "leads to another directory now: opened again"),
                Standing::Uncovered => {
                    return Err(Problem::new(
                        ErrorCode::StorageUnavailable,
                        format!(
                            "export {:?}: the disk that was mounted at {} is gone; mount it again, or restart the \
                             gateway if the directory is meant to be without it",
                            slot.name,
                            without_credentials(&slot.config.url)
                        ),
                    ));
                }
            }
        }
        if let Some((at, error)) = &opened.failed
            && at.elapsed() < REOPEN_AFTER
        {
            return Err(Problem::from(error.clone()));
        }
        match connect(slot).await {
            Ok((export, local)) => {
                let export: Arc<dyn Export> =
                    Arc::new(Metered::new(&slot.name, export, slot.config.read_only, self.meters.clone()));
                *opened = Opened { export: Some(Arc::clone(&export)), local, ..Opened::default() };
                Ok(export)
            }
            Err(error) => {
                let error = error.of(&metered::shown(&slot.name));
                *opened = Opened { failed: Some((Instant::now(), error.clone())), ..Opened::default() };
                Err(error.into())
            }
        }
    }

    /// What each export is, and whether it answers now.
    pub async fn probe(&self) -> Vec<v1::ExportInfo> {
        let probes = self.slots.values().map(|slot| async move {
            let answer = tokio::time::timeout(PROBE_DEADLINE, async {
                let export = self.open(slot).await?;
                export.stat(&ObjectPath::root()).await?;
                Ok::<_, Problem>((export.url(), export.abilities().await?))
            })
            .await;
            let mut info = v1::ExportInfo {
                name: slot.name.clone(),
                url: without_credentials(&slot.config.url),
                read_only: slot.config.read_only,
                ready: false,
                problem: String::new(),
                output_prefixes: slot.config.output_prefixes.clone(),
                hidden_refused: slot.rules.refuses_hidden(),
            };
            match answer {
                Ok(Ok((url, abilities))) => {
                    info.ready = true;
                    info.url = url;
                    info.read_only |= !abilities.write;
                }
                Ok(Err(problem)) => info.problem = problem.message,
                Err(_) => {
                    info.problem = format!(
                        "{}: no answer within {} s; is the NAS up, and does it serve this export to this machine?",
                        info.url,
                        PROBE_DEADLINE.as_secs()
                    );
                }
            }
            info
        });
        futures::future::join_all(probes).await
    }
}

async fn connect(slot: &Slot) -> Result<(Arc<dyn Export>, Option<LocalExport>), ExportError> {
    let config = &slot.config;
    if let Some(path) = config.url.strip_prefix("file://") {
        let (root, read_only) = (PathBuf::from(path), config.read_only);
        let make = slot.ours;
        let opened = tokio::task::spawn_blocking(move || {
            // A person's directory that is missing is a mistake to be told.
            if make {
                std::fs::create_dir_all(&root)
                    .map_err(|error| ExportError::Unavailable(format!("{}: {error}", root.display())))?;
            }
            LocalExport::open(&root, read_only)
        });
        let opened = opened.await.map_err(|ended| ExportError::Unavailable(format!("{}: {ended}", config.url)))?;
        let export = opened.map_err(|error| match error {
            // A disk that isn't mounted yet: what lies on it isn't missing.
            ExportError::NotFound(words) => ExportError::Unavailable(format!("{words}; mount it or make it")),
            other => other,
        })?;
        return Ok((Arc::new(export.clone()), Some(export)));
    }
    if config.url.starts_with("iscsi://") {
        // Logs in with the first call, and again whenever it must.
        return Ok((Arc::new(IscsiExport::new(&config.url, &config.iscsi.options())?), None));
    }
    // Mounts with the first call, and again whenever it must.
    Ok((Arc::new(NfsExport::new(&config.url, &config.nfs.options())?), None))
}

fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').map_or((rest, None), |(a, p)| (a, Some(p)));
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        None => url.to_owned(),
    }
}
