//! Reads a unit, or one file of an export, as fast as it goes, and prints how fast that was.
//!
//! `iscsi_read unit URL BYTES DEPTH SECONDS seq|rand`: reads of so many bytes, so many in flight.
//! `iscsi_read file URL PATH DEPTH`: one file from its beginning to its end, in reads of 1 MiB; iscsi:// and file://.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{FuturesOrdered, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use ingle_gateway::export::iscsi::{IscsiExport, IscsiOptions};
use ingle_gateway::export::local::LocalExport;
use ingle_gateway::export::{Export, ExportError};
use ingle_proto::ObjectPath;

const MIB: u32 = 1 << 20;

/// On one thread, as libiscsi's `iscsi-perf` is: on two, one wakes for what the other is reading already.
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["unit", url, bytes, depth, seconds, order] => {
            let (bytes, depth, seconds) = (number(bytes), number(depth) as usize, number(seconds));
            unit(url, bytes, depth, Duration::from_secs(seconds.into()), order == "rand").await
        }
        ["file", url, path, depth] => file(url, path, number(depth) as usize).await,
        _ => panic!("expected: unit URL BYTES DEPTH SECONDS seq|rand, or: file URL PATH DEPTH"),
    };
    done.unwrap_or_else(|error| panic!("{error}"));
}

fn number(text: &str) -> u32 {
    text.parse().unwrap_or_else(|_| panic!("{text} isn't a number"))
}

async fn unit(url: &str, bytes: u32, depth: usize, most: Duration, random: bool) -> Result<(), ExportError> {
    let options = IscsiOptions { depth, ..IscsiOptions::default() };
    let export = IscsiExport::new(url, &options)?;
    let places = export.unit_bytes().await? / u64::from(bytes);
    let (begun, mut count, mut at) = (Instant::now(), 0_u64, 0);
    let mut next = || {
        at = if random { fastrand::u64(..places) } else { (at + 1) % places };
        export.read_unit(at * u64::from(bytes), bytes)
    };
    let mut reads: FuturesUnordered<_> = (0..depth).map(|_| next()).collect();
    while let Some(data) = reads.next().await {
        assert_eq!(data?.len(), bytes as usize);
        count += 1;
        if count % 64 != 0 || begun.elapsed() < most {
            reads.push(next());
        } else {
            break;
        }
    }
    tell(count, count * u64::from(bytes), begun);
    Ok(())
}

async fn file(url: &str, path: &str, depth: usize) -> Result<(), ExportError> {
    let export: Arc<dyn Export> = match url.strip_prefix("file://") {
        Some(directory) => Arc::new(LocalExport::open(directory.as_ref(), true)?),
        None => Arc::new(IscsiExport::connect(url, &IscsiOptions::default()).await?),
    };
    let path = ObjectPath::new(path).expect("a path below the export's root");
    let size = export.stat(&path).await?.size;
    let begun = Instant::now();
    let (mut at, mut bytes, mut count) = (0, 0, 0);
    let mut reads = FuturesOrdered::new();
    while bytes < size {
        while reads.len() < depth && at < size {
            reads.push_back(export.read_at(&path, at, MIB).boxed());
            at += u64::from(MIB);
        }
        let data = reads.next().await.expect("some are under way")?;
        assert!(!data.is_empty(), "the file became shorter");
        (bytes, count) = (bytes + data.len() as u64, count + 1);
    }
    tell(count, bytes, begun);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "that is what it is for")]
fn tell(count: u64, bytes: u64, begun: Instant) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{:.0} bytes/s {:.0} reads/s", bytes as f64 / seconds, count as f64 / seconds);
}
