//! Pages under hardship. kill -9 in the middle of a long document: its finished ranges are not read again, and every page is
//! there once. Hostile documents among many good ones: each is told, and no node is the worse for it.

use ingle_proto::v1::{self, ItemOutcome};
use ingle_tests::client::{counts, ocr_job};
use ingle_tests::cluster::counted;
use ingle_tests::eventually::eventually;
use ingle_tests::models::FakeModel;
use ingle_tests::papers::{hostile, pdf, png, tiff};

use crate::world::World;

const PAGES: u64 = 90;

/// Pages of the one document that are durably done, as its entry says; `None` while nobody can tell.
async fn done(world: &World, job: &str) -> Option<u64> {
    let request = v1::ListItemsRequest { job_id: job.into(), ..Default::default() };
    let items = world.client.jobs.clone().list_items(request).await.ok()?.into_inner().items;
    let item = items.into_iter().next()?;
    match item.outcome() {
        ItemOutcome::Published | ItemOutcome::Committed => Some(PAGES),
        _ => Some(item.reason.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)),
    }
}

/// The same once some are.
async fn some_done(world: &World, job: &str) -> u64 {
    eventually("the first pages", || async {
        match done(world, job).await {
            Some(done) if done > 0 => Ok(done),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_killed_in_the_middle_of_a_long_document() {
    let mut world = World::start(2, &[FakeModel::that_reads("eyes").at_ms_per_step(40)]).await;
    let lines: Vec<String> = (1..=PAGES).map(|number| format!("page {number} of many")).collect();
    let pages: Vec<Vec<&str>> = lines.iter().map(|line| vec![line.as_str(), "a second line"]).collect();
    world.share.write("in/long.tif", tiff(&pages));
    let job = world.client.submit(ocr_job()).await;
    let before = some_done(&world, &job).await;
    assert!(before < PAGES, "it is in the middle");
    let read = |page: String| counted(&page, "ingle_node_pages_total");
    let begun = read(world.nodes[1].metrics().await);
    world.nodes[0].kill();
    let ended = world.client.end_of(&job).await;
    assert_eq!((counts(&ended).published, counts(&ended).failed), (1, 0), "{ended:?}");
    let text = String::from_utf8(world.share.read("out/long.tif.txt")).expect("UTF-8");
    let whole: Vec<String> = lines.iter().map(|line| format!("{line}\na second line\n")).collect();
    assert_eq!(text, whole.join("\x0c"), "every page once, in order");
    let since = read(world.nodes[1].metrics().await) - begun;
    assert!(since <= PAGES - before, "{before} pages were done, and the other node read {since} after that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_killed_in_the_middle_of_a_long_document() {
    let mut world = World::start(2, &[FakeModel::that_reads("eyes").at_ms_per_step(40)]).await;
    let lines: Vec<String> = (1..=PAGES).map(|number| format!("page {number} of many")).collect();
    let pages: Vec<Vec<&str>> = lines.iter().map(|line| vec![line.as_str(), "a second line"]).collect();
    world.share.write("in/long.tif", tiff(&pages));
    let job = world.client.submit(ocr_job()).await;
    let seen = some_done(&world, &job).await;
    world.coordinator.kill();
    world.gateway.kill();
    for node in &mut world.nodes {
        node.kill();
    }
    world.gateway.restart().await;
    world.coordinator.restart().await;
    let before = some_done(&world, &job).await;
    assert!((seen..PAGES).contains(&before), "what was done is known: {seen}, then {before}");
    for node in &mut world.nodes {
        node.restart().await;
    }
    let ended = world.client.end_of(&job).await;
    assert_eq!((counts(&ended).published, counts(&ended).failed), (1, 0), "{ended:?}");
    let text = String::from_utf8(world.share.read("out/long.tif.txt")).expect("UTF-8");
    assert_eq!(text.split('\x0c').count() as u64, PAGES);
    let mut read = 0;
    for node in &world.nodes {
        read += counted(&node.metrics().await, "ingle_node_pages_total");
    }
    assert_eq!(read, PAGES - before, "the restarted nodes read what was left, and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_documents_are_read_and_ten_hostile_ones_are_told() {
    let mut world = World::start(2, &[FakeModel::that_reads("eyes")]).await;
    for number in 0..200 {
        let line = format!("letter number {number}");
        let (name, bytes) = match number % 4 {
            0 => (format!("{number}.tif"), tiff(&[vec![&line], vec!["second page"]])),
            1 => (format!("{number}.pdf"), pdf(&[vec![&line, "printed"]])),
            _ => (format!("scans/{number}.png"), png(&[&line])),
        };
        world.share.write(&format!("in/{name}"), bytes);
    }
    let hostile = hostile();
    for (name, bytes, _) in &hostile {
        world.share.write(&format!("in/{name}"), bytes);
    }
    let job = world.client.done(ocr_job()).await;
    let seen = counts(&job);
    assert_eq!((seen.total, seen.published, seen.failed, seen.quarantined), (210, 200, 10, 0), "{job:?}");
    let items = world.client.items(&job.job_id).await;
    for (name, _, code) in &hostile {
        let item = &items[*name];
        assert_eq!((item.outcome(), item.code.as_str()), (ItemOutcome::Failed, *code), "{item:?}");
        assert!(item.reason.len() > 10, "a sentence: {item:?}");
    }
    assert_eq!(world.share.names("out").len(), 400, "two files of each good document, and nothing of the others");
    // They are the processes of the beginning: they counted every page, and killing one that had ended would be noticed.
    let mut read = 0;
    for node in &mut world.nodes {
        let metrics = node.metrics().await;
        read += counted(&metrics, "ingle_node_pages_total");
        assert_eq!(counted(&metrics, "ingle_node_model_restarts_total"), 0);
        node.kill();
    }
    assert_eq!(read, 251, "fifty documents have two pages; one hostile document opens, but its page can't be read");
}
