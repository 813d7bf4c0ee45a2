//! The service `ingle.v1.Inference`: a person's calls, translated into the core's terms and back.

use ingle_proto::job::{validate_embed_request, validate_generate_request};
use ingle_proto::{ErrorCode, Problem, v1};
use tonic::{Request, Response, Status, Streaming};

use super::Api;
use crate::calls::Frames;

/// See the module.
pub struct InferenceService {
    api: Api,
}

impl InferenceService {
    pub(super) fn new(api: Api) -> Self {
        Self { api }
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
            self.api.calls.resume(&request.resume_token)?
        };
        Ok(Response::new(frames))
    }

    async fn ocr(&self, _: Request<Streaming<v1::OcrRequest>>) -> Result<Response<v1::OcrResponse>, Status> {
        Err(Problem::new(ErrorCode::Unimplemented, "pages can't be read yet; Embed and Generate are built").into())
    }
}
