//! Read: a range of an object, blob or staged result as a stream of messages.

use bytes::Bytes;
use futures::StreamExt as _;
use ingle_daemon::OnFailure;
use ingle_proto::{ErrorCode, Problem, v1};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tracing::Instrument as _;

use super::{Answers, STALL, Service, attributes};
use crate::source::Opened;

pub(super) async fn begin(service: &Service, request: v1::ReadRequest) -> Result<Answers<v1::ReadResponse>, Problem> {
    let opened = service.sources.open(&request).await?;
    let (out, answers) = mpsc::channel(1);
    let reading = async move {
        if let Err(problem) = stream(opened, &out).await {
            let _ = tokio::time::timeout(STALL, out.send(Err(problem.into()))).await;
        }
        Ok::<_, std::convert::Infallible>(())
    };
    // The NAS is read as the answer goes out, and that is part of the same trace.
    service.tasks.spawn("read", OnFailure::Log, reading.in_current_span());
    Ok(Box::pin(ReceiverStream::new(answers)))
}

async fn stream(mut opened: Opened, out: &mpsc::Sender<Result<v1::ReadResponse, Status>>) -> Result<(), Problem> {
    send(out, v1::ReadResponse { attributes: Some(attributes(&opened.attr)), data: Bytes::new() }).await?;
    while let Some(piece) = opened.pieces.next().await {
        send(out, v1::ReadResponse { attributes: None, data: piece? }).await?;
    }
    Ok(())
}

async fn send(out: &mpsc::Sender<Result<v1::ReadResponse, Status>>, message: v1::ReadResponse) -> Result<(), Problem> {
    match tokio::time::timeout(STALL, out.send(Ok(message))).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(Problem::new(ErrorCode::Cancelled, "nobody reads any more")),
        Err(_) => Err(Problem::new(ErrorCode::Deadline, format!("nothing was taken for {} s", STALL.as_secs()))),
    }
}
