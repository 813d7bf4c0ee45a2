//! Bytes that arrive damaged: everything of ours carries a digest or a checksum, and is never taken for what it isn't.

use ingle_gateway::config::ExportConfig;
use ingle_gateway::nfs_server::{Faults, NfsFaults, NfsServer, NfsServerOptions};
use ingle_proto::ErrorCode;
use ingle_proto::v1::storage_client::StorageClient;
use ingle_proto::v1::{self, read_request::Source};
use tonic::transport::Channel;

use crate::wire::{Served, code, object};

async fn walked(mut client: StorageClient<Channel>) -> Result<(), tonic::Status> {
    let scan = v1::ScanRequest {
        job_id: "j-1".into(),
        input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Tree(object("in"))) }),
        kind: v1::JobKind::Embed.into(),
        place: Some(object("out")),
        ..Default::default()
    };
    let mut answers = client.scan(scan).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ours_is_known_for_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (docs, state) = (dir.path().join("docs"), dir.path().join("blobs"));
    for directory in [docs.join("in"), state.clone()] {
        std::fs::create_dir_all(directory).unwrap();
    }
    let faults = Faults::new(NfsFaults::default());
    let options = || NfsServerOptions { faults: faults.clone(), ..NfsServerOptions::default() };
    let (docs, state) =
        (NfsServer::bind(&docs, options()).await.unwrap(), NfsServer::bind(&state, options()).await.unwrap());
    let mut served = Served::start_in(dir, |config| {
        config.exports.get_mut("docs").unwrap().url = docs.url();
        config.state_export = Some(ExportConfig { url: state.url(), ..ExportConfig::default() });
    })
    .await;
    served.write("in/a.md", b"alpha");
    let blob = served.blob(&[7; 5000]).await;
    let of_blob = v1::ReadRequest { source: Some(Source::Blob(blob)), ..Default::default() };
    // The first walk leaves what is fixed about the place; the second reads it damaged.
    walked(served.client.clone()).await.unwrap();
    faults.set(|trouble| trouble.corrupt = true);
    assert_eq!(code(served.read(of_blob.clone()).await), ErrorCode::DigestMismatch);
    assert_eq!(code(walked(served.client.clone()).await), ErrorCode::DigestMismatch);
    faults.set(|trouble| trouble.corrupt = false);
    assert_eq!(served.read(of_blob).await.unwrap().1, [7; 5000]);
    walked(served.client.clone()).await.unwrap();
    // One that is old enough to be kept: what came damaged must not be.
    let blob = served.blob(&[8; 5000]).await;
    let of_blob = v1::ReadRequest { source: Some(Source::Blob(blob)), lasting: true, ..Default::default() };
    tokio::time::sleep(std::time::Duration::from_millis(5200)).await;
    faults.set(|trouble| trouble.corrupt = true);
    assert_eq!(code(served.read(of_blob.clone()).await), ErrorCode::DigestMismatch);
    faults.set(|trouble| trouble.corrupt = false);
    assert_eq!(served.read(of_blob).await.unwrap().1, [8; 5000]);
    served.stop().await;
}
