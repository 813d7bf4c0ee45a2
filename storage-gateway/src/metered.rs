//! An export with its calls counted and timed, its errors about the name that people know, and read-only where the
//! configuration says so.

use async_trait::async_trait;
use bytes::Bytes;
use ingle_proto::ObjectPath;
use std::sync::Arc;
use tokio::time::Instant;
use tracing::{Instrument as _, Span};

use crate::config::STATE_EXPORT;
use crate::export::{Abilities, Attr, Entry, Export, ExportError, Replace, User};
use crate::metrics::Meters;

/// See the module.
pub struct Metered {
    name: String,
    inner: Arc<dyn Export>,
    read_only: bool,
    meters: Meters,
}

impl Metered {
    /// Around `inner`, which the configuration calls `name`.
    #[must_use]
    pub fn new(name: &str, inner: Arc<dyn Export>, read_only: bool, meters: Meters) -> Self {
        Self { name: name.to_owned(), inner, read_only, meters }
    }

    async fn count<T>(
        &self,
        call: &'static str,
        work: impl Future<Output = Result<T, ExportError>>,
    ) -> Result<T, ExportError> {
        let begun = Instant::now();
        let result = work.await;
        self.meters.call(&self.name, call, result.as_ref().err(), begun.elapsed());
        result.map_err(|error| error.of(&shown(&self.name)))
    }

    /// Of a read, where it is part of a trace; what the gateway reads for itself isn't.
    fn span(&self, bytes: u32) -> Span {
        if Span::current().is_none() {
            return Span::none();
        }
        tracing::info_span!("nas.read", otel.kind = "client", export = %self.name, bytes)
    }

    fn writable(&self, path: &ObjectPath) -> Result<(), ExportError> {
        if self.read_only {
            Err(ExportError::ReadOnly(format!("nas://{}: {}", self.name, path.display())))
        } else {
            Ok(())
        }
    }
}

/// What people call an export.
#[must_use]
pub fn shown(name: &str) -> String {
    if name == STATE_EXPORT { "the state export".to_owned() } else { format!("nas://{name}") }
}

#[async_trait]
impl Export for Metered {
    fn url(&self) -> String {
        self.inner.url()
    }

    fn user(&self) -> Option<User> {
        self.inner.user()
    }

    fn as_user(&self, user: &User) -> Option<Arc<dyn Export>> {
        let inner = self.inner.as_user(user)?;
        Some(Arc::new(Self { inner, name: self.name.clone(), meters: self.meters.clone(), read_only: self.read_only }))
    }

    async fn abilities(&self) -> Result<Abilities, ExportError> {
        let abilities = self.inner.abilities().await.map_err(|error| error.of(&shown(&self.name)))?;
        Ok(Abilities { write: abilities.write && !self.read_only, ..abilities })
    }

    fn remote(&self) -> bool {
        self.inner.remote()
    }

    async fn stat(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        self.count("stat", self.inner.stat(path)).await
    }

    async fn readable(&self, path: &ObjectPath) -> Result<Attr, ExportError> {
        self.count("readable", self.inner.readable(path)).await
    }

    async fn may_add(&self, directory: &ObjectPath) -> Result<bool, ExportError> {
        self.count("may_add", self.inner.may_add(directory)).await
    }

    async fn list(&self, path: &ObjectPath, limit: usize) -> Result<Vec<Entry>, ExportError> {
        self.count("list", self.inner.list(path, limit)).await
    }

    async fn read_at(&self, path: &ObjectPath, offset: u64, length: u32) -> Result<Bytes, ExportError> {
        let read = self.inner.read_at(path, offset, length).instrument(self.span(length));
        let data = self.count("read", read).await?;
        self.meters.read(&self.name, data.len() as u64);
        Ok(data)
    }

    async fn read_with_attr(
        &self,
        path: &ObjectPath,
        offset: u64,
        length: u32,
    ) -> Result<(Bytes, Option<Attr>), ExportError> {
        let read = self.inner.read_with_attr(path, offset, length).instrument(self.span(length));
        let (data, attr) = self.count("read", read).await?;
        self.meters.read(&self.name, data.len() as u64);
        Ok((data, attr))
    }

    async fn create(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("create", self.inner.create(path)).await
    }

    async fn write_at(&self, path: &ObjectPath, offset: u64, data: Bytes) -> Result<(), ExportError> {
        self.writable(path)?;
        let size = data.len() as u64;
        self.count("write", self.inner.write_at(path, offset, data)).await?;
        self.meters.written(&self.name, size);
        Ok(())
    }

    async fn write_back(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("commit", self.inner.write_back(path)).await
    }

    async fn commit(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("commit", self.inner.commit(path)).await
    }

    async fn link(&self, from: &ObjectPath, to: &ObjectPath) -> Result<(), ExportError> {
        self.writable(to)?;
        self.count("link", self.inner.link(from, to)).await
    }

    async fn rename(&self, from: &ObjectPath, to: &ObjectPath, replace: Replace) -> Result<(), ExportError> {
        self.writable(to)?;
        self.count("rename", self.inner.rename(from, to, replace)).await
    }

    async fn remove(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("remove", self.inner.remove(path)).await
    }

    async fn make_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("make_directory", self.inner.make_directory(path)).await
    }

    async fn remove_directory(&self, path: &ObjectPath) -> Result<(), ExportError> {
        self.writable(path)?;
        self.count("remove_directory", self.inner.remove_directory(path)).await
    }
}
