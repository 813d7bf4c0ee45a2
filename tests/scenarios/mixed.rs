//! Programs of the version before and of the one after ours beside today's cluster.

use std::net::SocketAddr;
use std::path::PathBuf;

use ingle_proto::ErrorCode;
use ingle_proto::v1::{self, JobState};
use ingle_tests::client::{channel, counts, embed_job};
use ingle_tests::cluster::Cluster;
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;
use prost::Message;
use protox::prost_reflect::{DescriptorPool, DynamicMessage};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Request, Status};

/// Bytes as they go over the wire.
#[derive(Debug, Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(into, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = bytes::Buf::remaining(from);
        Ok(Some(bytes::Buf::copy_to_bytes(from, length).to_vec()))
    }
}

/// A program that knows another version of the contract.
struct Other {
    address: SocketAddr,
    speaks: Speaks,
}

enum Speaks {
    /// What a recorded version knew, and nothing else.
    Recorded(DescriptorPool),
    /// More than we know: every message has a field more.
    Later,
}

impl Other {
    fn of_0_1(address: SocketAddr) -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../proto/recorded/0.1");
        let files = ["types", "registry", "storage", "jobs", "inference", "node", "cluster"];
        let set = protox::compile(files.map(|name| format!("ingle/v1/{name}.proto")), [root]).expect("recorded");
        let pool = DescriptorPool::from_file_descriptor_set(set).expect("protox made it");
        Self { address, speaks: Speaks::Recorded(pool) }
    }

    /// What this program would have of a message: a message of 0.1 loses whatever 0.1 has no word for.
    fn filter(&self, name: &str, bytes: Vec<u8>, sent: bool) -> Vec<u8> {
        match &self.speaks {
            Speaks::Recorded(pool) => {
                let known = pool.get_message_by_name(&format!("ingle.v1.{name}")).expect("0.1 has it");
                let mut message = DynamicMessage::decode(known, bytes.as_slice()).expect("0.1 can read it");
                let unknown = message.take_unknown_fields().count();
                assert!(!sent || unknown == 0, "{name}: 0.1 couldn't say this");
                message.encode_to_vec()
            }
            Speaks::Later => {
                let mut bytes = bytes;
                if sent {
                    prost::encoding::string::encode(15_000, &"of a later version".to_owned(), &mut bytes);
                    prost::encoding::uint64::encode(15_001, &u64::MAX, &mut bytes);
                }
                bytes
            }
        }
    }

    async fn ask<A: Message, B: Message + Default>(
        &self,
        rpc: &str,
        (asks, answers): (&str, &str),
        request: A,
    ) -> Result<B, Status> {
        let mut grpc = tonic::client::Grpc::new(channel(self.address));
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = format!("/ingle.v1.{rpc}").parse().expect("a path");
        let bytes = self.filter(asks, request.encode_to_vec(), true);
        let answer = grpc.unary(Request::new(bytes), path, Raw).await?.into_inner();
        Ok(B::decode(self.filter(answers, answer, false).as_slice()).expect("our own words"))
    }

    async fn submit(&self, spec: v1::JobSpec, key: &str) -> Result<v1::SubmitJobResponse, Status> {
        let request = v1::SubmitJobRequest { spec: Some(spec), idempotency_key: key.into(), ..Default::default() };
        self.ask("Jobs/SubmitJob", ("SubmitJobRequest", "SubmitJobResponse"), request).await
    }

    async fn job(&self, id: &str) -> Result<v1::GetJobResponse, Status> {
        let request = v1::GetJobRequest { job_id: id.into() };
        self.ask("Jobs/GetJob", ("GetJobRequest", "GetJobResponse"), request).await
    }

    /// Submits a job, follows it to its end, and looks around.
    async fn uses(&self, cluster: &Cluster, documents: u64) {
        let names = ("ListNodesRequest", "ListNodesResponse");
        let nodes: v1::ListNodesResponse =
            self.ask("Cluster/ListNodes", names, v1::ListNodesRequest::default()).await.expect("an answer");
        assert_eq!(nodes.nodes.len(), cluster.nodes.len());
        let first = self.submit(embed_job(), "once").await.expect("taken").job.expect("a job");
        let again = self.submit(embed_job(), "once").await.expect("taken");
        assert!(again.existed, "the same key and the same specification are the same job");
        let job = eventually("the job's end", || async {
            let job = self.job(&first.job_id).await.map_err(|error| error.to_string())?.job.unwrap_or_default();
            if job.state() == JobState::Succeeded { Ok(job) } else { Err(format!("{job:?}")) }
        })
        .await;
        assert_eq!(counts(&job).total, documents, "{job:?}");
        let names = ("ListJobsRequest", "ListJobsResponse");
        let listed: v1::ListJobsResponse =
            self.ask("Jobs/ListJobs", names, v1::ListJobsRequest::default()).await.expect("an answer");
        assert!(listed.jobs.iter().any(|job| job.job_id == first.job_id), "{listed:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_0_1_uses_today_s_cluster() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    let documents = cluster.share.documents(5);
    cluster.share.age("in");
    Other::of_0_1(cluster.address).uses(&cluster, documents.len() as u64).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_a_later_version_uses_today_s_cluster() {
    let cluster = Cluster::of(1).with(FakeModel::that_embeds("words")).start().await;
    let documents = cluster.share.documents(5);
    cluster.share.age("in");
    let later = Other { address: cluster.address, speaks: Speaks::Later };
    later.uses(&cluster, documents.len() as u64).await;
    // A kind of job that only it knows is refused by name, and the coordinator goes on.
    let refused = later.submit(v1::JobSpec { kind: 9_999, ..embed_job() }, "").await.expect_err("unknown here");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let problem = ingle_proto::Problem::from_status(&refused);
    assert_eq!(problem.code, ErrorCode::InvalidArgument);
    let urgent = v1::JobSpec { priority: 9_999, ..embed_job() };
    match later.submit(urgent, "urgent").await {
        Ok(taken) => assert!(!taken.job.expect("a job").job_id.is_empty()),
        Err(refused) => assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}"),
    }
    assert!(later.job("j-1").await.is_ok());
    cluster.stop().await;
}
