//! The Storage service: from the wire to domain types and back; decisions are elsewhere.

mod read;

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::Stream;
use ingle_daemon::{OnFailure, Tasks};
use ingle_proto::storage::{OWN_DIRECTORY, Object};
use ingle_proto::v1::storage_server::Storage;
use ingle_proto::{Digest, Problem, v1};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::access;
use crate::blob::Blobs;
use crate::config::STATE_EXPORT;
use crate::export::{Attr, Kind};
use crate::exports::Exports;
use crate::limits::{DIRECTORY_ENTRIES_MAX, LIST_PAGE_ENTRIES, Limits};
use crate::place::Place;
use crate::principals::OURSELVES;
use crate::publish::{self, Publisher};
use crate::range::Served;
use crate::rules::is_hidden;
use crate::scan::{self, Scanner};
use crate::source::Sources;
use crate::stage::Staging;

/// Parts that are removed in one call.
const FORGET_MAX: usize = 100;
/// How long a peer may keep a stream waiting.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Clone)]
pub struct Service {
    pub(crate) exports: Arc<Exports>,
    pub(crate) blobs: Blobs,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) scanner: Arc<Scanner>,
    pub(crate) sources: Sources,
    pub(crate) limits: Limits,
    pub(crate) tasks: Tasks,
    /// Known once the listeners are open.
    pub(crate) ranges: Arc<OnceLock<Served>>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    /// Work that goes on when its caller leaves: it is never dropped midway.
    async fn to_the_end<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        let (sender, receiver) = oneshot::channel();
        self.tasks.spawn(name, OnFailure::Log, async move {
            // Whoever asked may have left; the work is done all the same.
            let _ = sender.send(work.await);
            Ok::<_, std::convert::Infallible>(())
        });
        receiver.await.unwrap_or_else(|_| Err(publish::lost(name)))
    }
}

#[tonic::async_trait]
impl Storage for Service {
    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        let object = visible(request.into_inner().object, "object")?;
        let export = self.exports.get(&object, OURSELVES).await?;
        let attr = export.stat(&object.path).await.map_err(Problem::from)?;
        Ok(Response::new(v1::StatResponse { attributes: Some(attributes(&attr)) }))
    }

    type ListStream = Answers<v1::ListResponse>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let object = visible(request.into_inner().object, "object")?;
        let export = self.exports.get(&object, OURSELVES).await?;
        let hidden = self.exports.rules(&object.export)?.lists_hidden();
        let mut entries = export.list(&object.path, DIRECTORY_ENTRIES_MAX).await.map_err(Problem::from)?;
        entries.retain(|entry| entry.name != OWN_DIRECTORY && (hidden || !is_hidden(&entry.name)));
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let mut entries = entries.into_iter();
        let pages = std::iter::from_fn(move || {
            let page: Vec<v1::ListEntry> = entries
                .by_ref()
                .take(LIST_PAGE_ENTRIES)
                .map(|entry| v1::ListEntry { attributes: Some(attributes(&entry.attr)), name: entry.name.into() })
                .collect();
            (!page.is_empty()).then_some(Ok(v1::ListResponse { entries: page }))
        });
        Ok(Response::new(Box::pin(futures::stream::iter(pages))))
    }

    type ScanStream = Answers<v1::ScanResponse>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = scan::check(request.into_inner())?;
        let (out, answers) = mpsc::channel(16);
        let scanner = Arc::clone(&self.scanner);
        self.tasks.spawn("scan", OnFailure::Log, async move {
            if let Err(problem) = scanner.scan(request, &out).await {
                // If nobody listens any more, nobody needs to know.
                let _ = out.send(Err(problem.into())).await;
            }
            Ok::<_, std::convert::Infallible>(())
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    type ReadStream = Answers<v1::ReadResponse>;

    async fn read(&self, request: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        Ok(Response::new(read::begin(self, request.into_inner()).await?))
    }

    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let mut messages = request.into_inner();
        let header = match next(&mut messages).await? {
            Some(v1::stage_request::Message::Header(header)) => header,
            Some(v1::stage_request::Message::Data(_)) | None => {
                return Err(Problem::invalid("header", "expected as the first message").into());
            }
        };
        let mut staging = Staging::begin(&self.exports, &self.blobs, header, self.limits.staged_bytes_max).await?;
        let outcome: Result<(), Status> = async {
            while let Some(message) = next(&mut messages).await? {
                match message {
                    v1::stage_request::Message::Data(data) => staging.push(data).await?,
                    v1::stage_request::Message::Header(_) => {
                        return Err(Problem::invalid("header", "came twice").into());
                    }
                }
            }
            Ok(())
        }
        .await;
        if let Err(status) = outcome {
            staging.discard().await;
            return Err(status);
        }
        Ok(Response::new(self.to_the_end("stage", staging.finish()).await?))
    }

    async fn forget(&self, request: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetResponse>, Status> {
        let request = request.into_inner();
        let epoch = request.epoch.ok_or_else(|| Problem::missing("epoch"))?;
        if request.blobs.len() > FORGET_MAX {
            let words = format!("at most {FORGET_MAX} at a time, got {}", request.blobs.len());
            return Err(Problem::invalid("blobs", words).into());
        }
        // An old leader's call may have ended while a new one's needs the same part.
        self.scanner.fence.admit(epoch.into()).await?;
        let mut removed = 0;
        for blob in &request.blobs {
            let digest = Digest::from_wire("blobs.digest", &blob.digest)?;
            removed += u64::from(self.blobs.forget(digest).await?);
        }
        Ok(Response::new(v1::ForgetResponse { removed }))
    }

    async fn publish(&self, request: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        let wire = request.into_inner();
        let checked = publish::check(&wire)?;
        let object = Object::try_from(wire.place.ok_or_else(|| Problem::missing("place"))?)?;
        let export = self.exports.writable(&object, &wire.principal).await?;
        let place = Place::new(object, export)?.used_by(&wire.principal);
        let publisher = Arc::clone(&self.publisher);
        let work = async move { publisher.publish(&place, checked).await };
        Ok(Response::new(self.to_the_end("publish", work).await?))
    }

    async fn ranges(&self, _request: Request<v1::RangesRequest>) -> Result<Response<v1::RangesResponse>, Status> {
        let served = self.ranges.get().cloned().unwrap_or_default();
        let socket = served.unix_socket.and_then(|path| path.to_str().map(str::to_owned));
        Ok(Response::new(v1::RangesResponse {
            port: served.port.map_or(0, u32::from),
            tls: served.tls,
            unix_socket: socket.unwrap_or_default(),
            instance: served.instance,
        }))
    }

    async fn list_exports(
        &self,
        _request: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        let exports = self.exports.probe().await;
        let state_export = match self.blobs.export().await {
            Ok(export) => export.url(),
            Err(problem) => format!("{STATE_EXPORT}: {}", problem.message),
        };
        Ok(Response::new(v1::ListExportsResponse { exports, state_export }))
    }
}

/// The next message of a stream, from a peer that may not dawdle for ever.
async fn next(messages: &mut Streaming<v1::StageRequest>) -> Result<Option<v1::stage_request::Message>, Status> {
    match tokio::time::timeout(STALL, messages.message()).await {
        Ok(message) => match message? {
            Some(v1::StageRequest { message: Some(message) }) => Ok(Some(message)),
            Some(v1::StageRequest { message: None }) => Err(Problem::missing("message").into()),
            None => Ok(None),
        },
        Err(_) => Err(Problem::new(
            ingle_proto::ErrorCode::Deadline,
            format!("nothing came for {} s; stage again", STALL.as_secs()),
        )
        .into()),
    }
}

/// An object that people may name: not inside a directory of ours.
fn visible(wire: Option<v1::ObjectRef>, field: &str) -> Result<Object, Problem> {
    access::visible(wire.ok_or_else(|| Problem::missing(field))?)
}

fn attributes(attr: &Attr) -> v1::Attributes {
    let kind = match attr.kind {
        Kind::File => v1::ObjectKind::File,
        Kind::Directory => v1::ObjectKind::Directory,
        Kind::Symlink => v1::ObjectKind::Symlink,
        Kind::Other => v1::ObjectKind::Other,
    };
    v1::Attributes {
        kind: kind.into(),
        size: attr.size,
        mtime_ns: attr.mtime_ns,
        ctime_ns: attr.ctime_ns,
        file_id: attr.file_id,
        mode: attr.mode,
        links: attr.links,
    }
}
