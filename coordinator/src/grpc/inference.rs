//! The service `ingle.v1.Inference`: a person's calls, translated into the core's terms and back.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use ingle_proto::job::{OCR_CALL_BYTES_MAX, validate_embed_request, validate_generate_request, validate_ocr_request};
use ingle_proto::{CHUNK_BYTES, ErrorCode, Problem, v1};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use super::documents::{Document, Documents};
use crate::calls::Frames;

/// Bytes of a document that are put together before they are kept as a blob: all that we hold of one.
const PART_BYTES: usize = 4 << 20;
/// Documents that come in at once.
const UPLOADS_MAX: usize = 32;
/// How long a caller may take for its next piece.
const PIECE_WITHIN: Duration = Duration::from_secs(30);

/// See the module.
pub(super) struct InferenceService {
    api: Api,
    uploads: Arc<Semaphore>,
    documents: Arc<Documents>,
}

impl InferenceService {
    pub(super) fn new(api: Api) -> Self {
        let documents = Documents::new(api.gateway.clone(), api.calls.tasks().clone());
        Self { api, uploads: Arc::new(Semaphore::new(UPLOADS_MAX)), documents: Arc::new(documents) }
    }
}

#[tonic::async_trait]
impl v1::inference_server::Inference for InferenceService {
    type GenerateStream = Frames;

    async fn embed(&self, request: Request<v1::EmbedRequest>) -> Result<Response<v1::EmbedResponse>, Status> {
        let request = request.into_inner();
        validate_embed_request(&request)?;
        Ok(Response::new(self.api.calls.embed(request).await?))
    }

    async fn generate(&self, request: Request<v1::GenerateRequest>) -> Result<Response<Frames>, Status> {
        let request = request.into_inner();
        let frames = if request.resume_token.is_empty() {
            validate_generate_request(&request)?;
            self.api.calls.generate(request).await?
        } else {
            self.api.calls.resume(&request.resume_token).await?
        };
        Ok(Response::new(frames))
    }

    async fn ocr(&self, request: Request<Streaming<v1::OcrRequest>>) -> Result<Response<v1::OcrResponse>, Status> {
        let mut pieces = request.into_inner();
        // Its parts leave the state export when the call ends, however it does.
        let mut document = Document::new(&self.documents);
        let (model, work) = {
            let _room = Arc::clone(&self.uploads).try_acquire_owned().map_err(|_| {
                Problem::new(ErrorCode::Overloaded, format!("{UPLOADS_MAX} documents are coming in already"))
                    .retry_after(Duration::from_secs(2))
            })?;
            self.take_document(&mut pieces, &mut document).await?
        };
        Ok(Response::new(self.api.calls.ocr(model, work).await?))
    }
}

impl InferenceService {
    /// Relays a document into the state export, a part at a time: a call that moves to another node needs no second copy
    /// of it here.
    async fn take_document(
        &self,
        pieces: &mut Streaming<v1::OcrRequest>,
        document: &mut Document,
    ) -> Result<(String, v1::OcrWork), Problem> {
        let mut first: Option<String> = None;
        let mut work = v1::OcrWork::default();
        let (mut part, mut size) = (BytesMut::new(), 0);
        while let Some(piece) = next(pieces).await? {
            if first.is_none() {
                validate_ocr_request(&piece)?;
                first = Some(piece.model.clone());
                work.media_type.clone_from(&piece.media_type);
            }
            if piece.data.len() > CHUNK_BYTES {
                let words = format!("at most {CHUNK_BYTES} bytes a message, got {}", piece.data.len());
                return Err(Problem::invalid("data", words));
            }
            size += piece.data.len();
            if size > OCR_CALL_BYTES_MAX {
                let words = format!(
                    "a document of a call has at most {} MiB: put it on an export and submit an OCR job",
                    OCR_CALL_BYTES_MAX >> 20
                );
                return Err(Problem::new(ErrorCode::TooLarge, words));
            }
            part.extend_from_slice(&piece.data);
            if part.len() > PART_BYTES - CHUNK_BYTES {
                document.keep(part.split().freeze()).await?;
            }
        }
        if !part.is_empty() {
            document.keep(part.freeze()).await?;
        }
        work.parts = document.parts().to_vec();
        if work.parts.is_empty() {
            return Err(Problem::invalid("data", "expected 1 byte to 64 MiB in all, got none"));
        }
        Ok((first.unwrap_or_default(), work))
    }
}

async fn next(pieces: &mut Streaming<v1::OcrRequest>) -> Result<Option<v1::OcrRequest>, Problem> {
    match tokio::time::timeout(PIECE_WITHIN, pieces.message()).await {
        Ok(Ok(piece)) => Ok(piece),
        Ok(Err(status)) if super::oversize::refused_as_too_large(&status) => {
            Err(Problem::invalid("data", format!("expected at most {CHUNK_BYTES} bytes a message")))
        }
        Ok(Err(status)) => {
            Err(Problem::new(ErrorCode::Cancelled, format!("the document broke off: {}", status.message())))
        }
        Err(_) => {
            Err(Problem::new(ErrorCode::Deadline, format!("no piece of the document came within {PIECE_WITHIN:?}")))
        }
    }
}
