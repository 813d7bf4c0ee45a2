//! `ingle up`: a whole cluster on one box. The three daemons and an NFS server per directory run as child processes with
//! generated settings: what is tried here is what runs everywhere.

mod child;
mod layout;
mod leftovers;
mod plan;
mod ports;
mod share;
mod supervise;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use ingle_proto::v1;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use self::layout::Layout;
pub(crate) use self::layout::data_dir;
use self::plan::Plan;
pub(crate) use self::plan::binary;
use self::ports::Ports;
use self::share::Share;
use self::supervise::{Cluster, Stop};
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::human;
use crate::out::{Colour, Out, note};

/// How long the daemons may take to find each other once each is ready.
const JOIN: Duration = Duration::from_secs(60);
/// How long the nodes may take to read the models' headers; jobs that come earlier wait for them.
const SEE_MODELS: Duration = Duration::from_secs(10);
/// After this long without another one they are taken to be all.
const NO_MORE_MODELS: Duration = Duration::from_millis(1500);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "\
A URL is a directory (served over NFS by a server of our own), nfs://HOST/PATH, or file:///DIRECTORY.
Ctrl-C stops everything in order; a daemon that ends by itself is started again.

Examples:
  ingle up --share docs=~/Documents
  ingle up --share scans=nfs://nas.local/volume1/scans --models /srv/models --nodes 2
  ingle up --share docs=. --port-base 8700        # coordinator at 8700, gateway at 8720, …";

/// Start a whole cluster on this machine
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct UpArgs {
    /// Serve URL as nas://NAME/; may be given several times
    #[arg(long, value_name = "NAME=URL")]
    share: Vec<String>,
    /// Where models lie, each in a folder of its own [default: models in the data directory]
    #[arg(long, value_name = "URL")]
    models: Option<String>,
    /// Directory for state, models, caches and logs [default: $XDG_DATA_HOME/inglenook or ~/.local/share/inglenook]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Nodes to start; they share this machine's cores and memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    nodes: u16,
    /// The coordinator's port, from which the others follow; 0 takes free ones
    #[arg(long, value_name = "PORT", default_value_t = ports::BASE)]
    port_base: u16,
}

pub(crate) async fn run(client: &Client, args: UpArgs) -> Result<(), Failure> {
    let out = client.out;
    // Heard from the beginning, so that Ctrl-C during the start stops what has started.
    let stop = listen_for_signals()?;
    let layout = Layout::open(&data_dir(args.data.as_deref())?)?;
    let models = args.models.clone().unwrap_or_else(|| layout.models().display().to_string());
    let shares = share::read(&args.share, &models, layout.data())?;
    for name in leftovers::end(&layout.run()).await? {
        note(out, format!("ended {name}, left over from an earlier run that was killed"));
    }
    let ports = Ports::choose(args.port_base, usize::from(args.nodes), &shares)?;
    let endpoint = format!("http://127.0.0.1:{}", ports.coordinator.serve);
    let plan = Plan::make(&layout, &ports, &shares)?;
    let cluster = Cluster::new(out, plan);
    let local = client.at(endpoint.clone());

    let started = tokio::select! {
        started = start(&cluster, &local, usize::from(args.nodes)) => started,
        _ = stopped(stop.clone()) => Err(Failure::new(Exit::Interrupted, "stopped while starting")),
    };
    if let Err(failure) = started {
        cluster.stop(stop).await;
        return Err(failure);
    }
    if args.models.is_some() || !layout.no_models() {
        see_models(&local).await;
    }
    let said = if out.json {
        out.json_line(&ready_json(&cluster, &endpoint, &shares, &layout))
    } else {
        say_ready(out, &cluster, &endpoint, &shares, &layout)
    };
    if said.is_ok() {
        stopped(stop.clone()).await;
    }
    note(out, "stopping: what runs ends or goes back to the queue first; Ctrl-C again kills");
    cluster.stop(stop).await;
    said
}

async fn start(cluster: &Cluster, client: &Client, nodes: usize) -> Result<(), Failure> {
    cluster.start().await?;
    // Each serves by now; together they are a cluster when the nodes have joined and the gateway is seen.
    let began = Instant::now();
    loop {
        let mut service = client.cluster().await?;
        let status = client.call(service.get_status(client.request(v1::GetStatusRequest {}))).await;
        match status {
            Ok(status) if status.nodes_ready as usize >= nodes && status.gateway_ready => return Ok(()),
            Ok(status) if began.elapsed() > JOIN => {
                return Err(Failure::new(
                    Exit::WorkFailed,
                    format!(
                        "after {}: {} of {nodes} nodes ready, gateway {}",
                        human::duration(JOIN),
                        status.nodes_ready,
                        if status.gateway_ready { "ready" } else { "not ready" }
                    ),
                )
                .hint("the logs in the data directory say why"));
            }
            Err(failure) if began.elapsed() > JOIN => return Err(failure),
            _ => tokio::time::sleep(POLL).await,
        }
    }
}

/// Waits until models are seen and no more come, so that who types the next command finds them. None is no error.
async fn see_models(client: &Client) {
    let began = Instant::now();
    let (mut count, mut since) = (0, began);
    while began.elapsed() < SEE_MODELS {
        let seen = async {
            let mut models = client.models().await?;
            client.call(models.list_models(client.request(v1::ListModelsRequest::default()))).await
        };
        let now = seen.await.map_or(0, |list| list.models.iter().filter(|model| !model.seen_by.is_empty()).count());
        if now != count {
            (count, since) = (now, Instant::now());
        }
        if count > 0 && since.elapsed() > NO_MORE_MODELS {
            return;
        }
        tokio::time::sleep(POLL).await;
    }
    if count > 0 {
        return;
    }
    note(client.out, "no node sees a model yet: the nodes' logs say why if that lasts");
}

/// Counts the signals that ask us to end.
fn listen_for_signals() -> Result<watch::Receiver<Stop>, Failure> {
    let (tell, told) = watch::channel(Stop::No);
    let mut signals = Vec::new();
    for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
        signals.push(signal(kind)?);
    }
    let [mut interrupt, mut terminate, mut hangup]: [_; 3] =
        signals.try_into().map_err(|_| Failure::new(Exit::WorkFailed, "three signals were asked for"))?;
    let mut listeners = tokio::task::JoinSet::new();
    listeners.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            tell.send_modify(|stop| *stop = if *stop == Stop::No { Stop::InOrder } else { Stop::AtOnce });
        }
    });
    // It lives as long as the process: signals must never again have their default effect.
    listeners.detach_all();
    Ok(told)
}

async fn stopped(mut stop: watch::Receiver<Stop>) {
    // The sender lives as long as the process.
    let _ = stop.wait_for(|s| *s != Stop::No).await;
}

fn say_ready(out: Out, cluster: &Cluster, endpoint: &str, shares: &[Share], layout: &Layout) -> Result<(), Failure> {
    out.line(out.paint(Colour::Green, "Inglenook is up."))?;
    out.line("")?;
    let rows =
        cluster.describe().into_iter().map(|p| vec![p.name, p.address, p.pid.to_string(), p.log.display().to_string()]);
    out.table(&["PROCESS", "ADDRESS", "PID", "LOG"], rows.collect())?;
    out.line("")?;
    let rows = shares.iter().map(|s| vec![format!("nas://{}/", s.name), s.described(), s.access().to_owned()]);
    out.table(&["SHARE", "FROM", ""], rows.collect())?;
    out.line("")?;
    out.line(format!("data in {}", layout.data().display()))?;
    let elsewhere = if endpoint == format!("http://127.0.0.1:{}", ports::BASE) {
        String::new()
    } else {
        format!(" --coordinator {endpoint}")
    };
    out.line("")?;
    out.line("Try, in another terminal:")?;
    match shares.iter().find(|s| !s.read_only) {
        Some(share) => {
            let name = &share.name;
            out.line(format!("  ingle{elsewhere} submit embed nas://{name}/ --output nas://{name}/.index --wait"))?;
        }
        None => note(out, "no share yet: `ingle up --share docs=DIR` serves a directory as nas://docs/"),
    }
    out.line(format!("  ingle{elsewhere} chat 'What is a hearth for?'"))?;
    out.line(format!("  ingle{elsewhere} status"))?;
    if layout.no_models() && shares.iter().any(|s| s.is(&layout.models())) {
        note(out, "there are no models yet: `ingle models pull --starter` fetches three; nodes see them by themselves");
    }
    Ok(())
}

fn ready_json(cluster: &Cluster, endpoint: &str, shares: &[Share], layout: &Layout) -> Value {
    let processes = cluster
        .describe()
        .into_iter()
        .map(|p| json!({ "name": p.name, "address": p.address, "pid": p.pid, "log": p.log }));
    let shares =
        shares.iter().map(|s| json!({ "name": s.name, "nas": format!("nas://{}/", s.name), "from": s.described() }));
    json!({
        "event": "ready", "coordinator": endpoint, "data": layout.data(),
        "processes": processes.collect::<Value>(), "shares": shares.collect::<Value>(),
    })
}
