//! The export's root as all users of it share it: its handle, the server's sizes, and whether it is still the same directory.

use nfs3_types::nfs3::fattr3;
use tokio::sync::Mutex;

use super::mount;
use super::resolve::Mounted;
use super::status::Fault;
use super::url::{NfsOptions, NfsUrl};
use super::wire::{self, Server};
use crate::export::ExportError;

/// What tells one root directory from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    fsid: u64,
    file_id: u64,
    /// A server that numbers its file systems anew when it starts shows the same directory by this.
    ctime_ns: i64,
}

impl Identity {
    fn of(attr: &fattr3) -> Self {
        Self { fsid: attr.fsid, file_id: attr.fileid, ctime_ns: wire::attr(attr).ctime_ns }
    }

    fn same(self, other: Self) -> bool {
        self.file_id == other.file_id && (self.fsid == other.fsid || self.ctime_ns == other.ctime_ns)
    }
}

#[derive(Default)]
struct State {
    mounted: Option<Mounted>,
    /// Of the directory that was mounted first.
    known: Option<Identity>,
}

/// See the module.
pub(super) struct Root {
    /// Who mounts: the export's own user.
    server: Server,
    asked: [Option<u32>; 2],
    state: Mutex<State>,
}

impl Root {
    pub(super) fn new(server: Server, options: &NfsOptions) -> Self {
        Self { server, asked: [options.read_size, options.write_size], state: Mutex::default() }
    }

    /// The root's handle and the server's sizes; mounts if need be, once for all who wait.
    ///
    /// A server that comes back with another directory under the same name is not worked on: what people keep there would
    /// count as deleted, and what jobs have staged as lost.
    pub(super) async fn mounted(&self, url: &NfsUrl) -> Result<Mounted, Fault> {
        let mut state = self.state.lock().await;
        if let Some(mounted) = &state.mounted {
            return Ok(mounted.clone());
        }
        let deadline = self.server.pool.deadline();
        let handle = mount::root(url, &self.server.credential, deadline).await.map_err(Fault::Mount)?;
        let found = Identity::of(&self.server.getattr(&handle).await?);
        match state.known {
            Some(known) if !known.same(found) => {
                return Err(ExportError::Unavailable(format!(
                    "{}: the server shows another directory there than before; let it show the former one again, or \
                     restart the gateway if this one is meant",
                    url.shown
                ))
                .into());
            }
            _ => state.known = Some(found),
        }
        let info = self.server.fsinfo(&handle, self.asked).await?;
        tracing::info!(
            export = url.shown,
            read_size = info.read_size,
            write_size = info.write_size,
            "mounted over NFSv3"
        );
        Ok(state.mounted.insert(Mounted { root: handle, info }).clone())
    }

    /// The root's handle means nothing to the server any more: the next call mounts again.
    pub(super) async fn forget(&self) {
        self.state.lock().await.mounted = None;
    }

    /// The root's attributes as they are now.
    pub(super) async fn seen(&self, attr: &fattr3) {
        self.state.lock().await.known = Some(Identity::of(attr));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_known_again() {
        let known = Identity { fsid: 7, file_id: 128, ctime_ns: 5 };
        assert!(known.same(Identity { ctime_ns: 9, ..known }), "it was changed");
        assert!(known.same(Identity { fsid: 8, ..known }), "the server numbers its file systems anew");
        assert!(!known.same(Identity { fsid: 8, ctime_ns: 9, ..known }), "the root of another file system");
        assert!(!known.same(Identity { file_id: 129, ..known }), "another directory of the same one");
    }
}
