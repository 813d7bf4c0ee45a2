//! The gateway's part of the coordinator that is played: exports, listings, staging.

use std::pin::Pin;
use std::sync::atomic::Ordering;

use ingle_proto::{ErrorCode, Problem, v1};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};
use v1::stage_request::Message;

use super::coordinator::{Played, not_played};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl v1::storage_server::Storage for Played {
    async fn stat(&self, request: Request<v1::StatRequest>) -> Result<Response<v1::StatResponse>, Status> {
        let path = request.into_inner().object.unwrap_or_default().path;
        let kind = match path.as_ref() {
            b"file" => v1::ObjectKind::File,
            b"none" => return Err(Problem::new(ErrorCode::ObjectNotFound, "none: no such object").into()),
            _ => v1::ObjectKind::Directory,
        };
        let attributes = v1::Attributes { kind: kind.into(), ..Default::default() };
        Ok(Response::new(v1::StatResponse { attributes: Some(attributes) }))
    }

    type ListStream = Answers<v1::ListResponse>;

    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        if request.into_inner().object.unwrap_or_default().export == "shut" {
            return Err(Problem::new(ErrorCode::StorageDenied, "the export's root: permission denied").into());
        }
        let entry = v1::ListEntry { name: b"a.md".to_vec().into(), attributes: None };
        let page = v1::ListResponse { entries: vec![entry] };
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(page)]))))
    }

    type ScanStream = Answers<v1::ScanResponse>;

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        not_played()
    }

    type ReadStream = Answers<v1::ReadResponse>;

    async fn read(&self, _: Request<v1::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        not_played()
    }

    async fn stage(
        &self,
        request: Request<Streaming<v1::StageRequest>>,
    ) -> Result<Response<v1::StageResponse>, Status> {
        let mut messages = request.into_inner();
        let mut size = 0;
        while let Some(message) = messages.message().await? {
            match message.message {
                Some(Message::Header(header)) => {
                    if let Some(refusal) = self.0.stage_refusal.as_ref().filter(|_| !header.blob) {
                        return Err(refusal.clone().into());
                    }
                    self.0.staged.lock().expect("no panic").push(header);
                }
                Some(Message::Data(data)) => size += data.len() as u64,
                None => {}
            }
        }
        Ok(Response::new(v1::StageResponse { digest: vec![7; 32].into(), size }))
    }

    async fn forget(&self, request: Request<v1::ForgetRequest>) -> Result<Response<v1::ForgetResponse>, Status> {
        let removed = request.into_inner().blobs.len();
        self.0.forgotten.fetch_add(removed, Ordering::SeqCst);
        Ok(Response::new(v1::ForgetResponse { removed: removed as u64 }))
    }

    async fn publish(&self, _: Request<v1::PublishRequest>) -> Result<Response<v1::PublishResponse>, Status> {
        not_played()
    }

    async fn ranges(&self, _: Request<v1::RangesRequest>) -> Result<Response<v1::RangesResponse>, Status> {
        not_played()
    }

    async fn list_exports(
        &self,
        _: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        let exports = self.0.exports.clone();
        Ok(Response::new(v1::ListExportsResponse { exports, state_export: "state".into() }))
    }
}
