//! What an operator allows of an export: where results go, hidden names, sizes of documents.

use ingle_gateway::rules::Hidden;
use ingle_proto::v1::{self, scan_response::Message};
use ingle_proto::{ErrorCode, Problem};
use tonic::Status;

use crate::wire::{Served, code, object, of, token};

async fn served(change: impl FnOnce(&mut ingle_gateway::config::ExportConfig)) -> Served {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("docs/in")).unwrap();
    Served::start_in(dir, |config| change(config.exports.get_mut("docs").unwrap())).await
}

fn scan(input: &str, place: &str) -> v1::ScanRequest {
    v1::ScanRequest {
        input: Some(v1::InputSpec { input: Some(v1::input_spec::Input::Tree(object(input))) }),
        kind: v1::JobKind::Generate.into(),
        place: Some(object(place)),
        ..Default::default()
    }
}

/// Names to do and names skipped, as the walk says.
async fn walked(served: &mut Served, request: v1::ScanRequest) -> Result<(Vec<String>, Vec<String>), Status> {
    let mut answers = served.client.scan(request).await?.into_inner();
    let mut found = (Vec::new(), Vec::new());
    while let Some(answer) = answers.message().await? {
        let Some(Message::Segment(info)) = answer.message else { continue };
        let source = v1::read_request::Source::Blob(info.blob.unwrap());
        let (_, bytes) = served.read(v1::ReadRequest { source: Some(source), ..Default::default() }).await?;
        let segment: v1::Segment = prost::Message::decode(&bytes[..]).unwrap();
        for entry in segment.entries {
            let name = String::from_utf8(entry.name.to_vec()).unwrap();
            if entry.action() == v1::EntryAction::Do { found.0.push(name) } else { found.1.push(name) }
        }
    }
    Ok(found)
}

#[tokio::test]
async fn results_go_only_where_the_settings_let_them() {
    let mut served = served(|docs| docs.output_prefixes = vec!["results".into()]).await;
    served.write("in/a.md", b"alpha");
    for place in ["out", "results2", "in"] {
        let problem = Problem::from_status(&walked(&mut served, scan("in", place)).await.unwrap_err());
        assert_eq!(problem.code, ErrorCode::ExportReadOnly);
        assert!(problem.message.contains("nas://docs/results"), "{problem}");
        let at = v1::AttemptToken { place: Some(object(place)), ..token() };
        let header = v1::StageHeader { token: Some(at), staged_name: "s".into(), size: 1, ..Default::default() };
        assert_eq!(code(served.stage(header, b"x").await), ErrorCode::ExportReadOnly, "{place}");
        let publish = v1::PublishRequest {
            epoch: Some(v1::Epoch { generation: 1, revision: 1 }),
            job_id: "j-1".into(),
            place: Some(object(place)),
            manifest: Some(v1::BlobRef { digest: vec![1; 32].into(), size: 1 }),
            kind: v1::JobKind::Generate.into(),
            ..Default::default()
        };
        assert_eq!(code(served.client.publish(publish).await), ErrorCode::ExportReadOnly, "{place}");
    }
    assert_eq!(walked(&mut served, scan("in", "results/may")).await.unwrap().0, ["a.md"]);
    let listed = served.client.list_exports(v1::ListExportsRequest {}).await.unwrap().into_inner();
    let docs = listed.exports.iter().find(|export| export.name == "docs").unwrap();
    assert_eq!((docs.output_prefixes.as_slice(), docs.hidden_refused), (&["results".to_owned()][..], false));
    served.stop().await;
}

#[tokio::test]
async fn hidden_names_are_listed_named_or_refused_and_ours_never() {
    for rule in [Hidden::Named, Hidden::Listed, Hidden::Refused] {
        let (hidden, named) = (rule == Hidden::Listed, rule != Hidden::Refused);
        let mut served = served(|docs| docs.hidden = rule).await;
        for name in ["in/a.md", "in/.b.md", "in/.git/c.md", "in/.inglenook/ledger/d.md"] {
            served.write(name, b"text");
        }
        let mut names = walked(&mut served, scan("in", "out")).await.unwrap().0;
        names.sort();
        let expected: &[&str] = if hidden { &[".b.md", ".git/c.md", "a.md"] } else { &["a.md"] };
        assert_eq!(names, expected);
        let mut pages = served.client.list(v1::ListRequest { object: Some(object("in")) }).await.unwrap().into_inner();
        let listed: Vec<_> = pages.message().await.unwrap().unwrap().entries.into_iter().map(|e| e.name).collect();
        let expected: &[&str] = if hidden { &[".b.md", ".git", "a.md"] } else { &["a.md"] };
        assert_eq!(listed, expected);
        for name in ["in/.b.md", "in/.git/c.md"] {
            let stat = served.client.stat(v1::StatRequest { object: Some(object(name)) }).await;
            let read = served.read(of(object(name))).await;
            if named {
                assert!(stat.is_ok());
                assert_eq!(read.unwrap().1, b"text");
            } else {
                let problem = Problem::from_status(&stat.unwrap_err());
                assert!(problem.message.contains("exports.docs.hidden"), "{problem}");
                assert_eq!(code(read), ErrorCode::PathRefused);
            }
        }
        let refused = walked(&mut served, scan("in/.git", "out")).await;
        assert_eq!(refused.is_ok(), named, "{refused:?}");
        assert_eq!(walked(&mut served, scan("in", ".out")).await.is_ok(), named);
        assert_eq!(code(served.read_object("in/.inglenook/ledger/d.md").await), ErrorCode::PathRefused);
        served.stop().await;
    }
}

#[tokio::test]
async fn an_export_may_have_a_size_limit_of_its_own() {
    let mut served = served(|docs| docs.document_bytes_max = Some(10)).await;
    served.write("in/small.md", b"0123456789");
    served.write("in/large.md", b"0123456789a");
    let (to_do, skipped) = walked(&mut served, scan("in", "out")).await.unwrap();
    assert_eq!((to_do, skipped), (vec!["small.md".to_owned()], vec!["large.md".to_owned()]));
    served.stop().await;
}
