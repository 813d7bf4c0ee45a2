//! `ingle models`: what can be run, where it fits, and fetching more.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use ingle_proto::v1;
use serde_json::{Value, json};

use super::submit::Kind;
use crate::client::Client;
use crate::exit::{Exit, Failure};
use crate::out::{Colour, Out};
use crate::{human, json, pull};

const PULL_EXAMPLES: &str = "\
Only safetensors, GGUF, JSON and text files are fetched, never pickled ones. A fetch that was interrupted goes on
where it was. HF_ENDPOINT and HF_TOKEN are honoured, and HTTPS_PROXY, and SSL_CERT_FILE.

Examples:
  ingle models pull --starter
  ingle models pull --starter --into /srv/models
  ingle models pull sentence-transformers/all-MiniLM-L6-v2
  ingle models pull bartowski/SmolLM2-360M-Instruct-GGUF SmolLM2-360M-Instruct-Q8_0.gguf";

/// Models: list, show, load, unload, fit, pull
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// List every model some node can see, and where it is loaded
    #[command(after_help = "Examples:\n  ingle models list\n  ingle models list --kind embed --json")]
    List(ListArgs),
    /// Show one model
    #[command(after_help = "Examples:\n  ingle models show all-MiniLM-L6-v2")]
    Show(ModelArgs),
    /// Load a model ahead of its first use
    #[command(
        after_help = "Examples:\n  ingle models load smollm2-135m-instruct\n  ingle models load smollm2-135m-instruct --node node-1"
    )]
    Load(NodeArgs),
    /// Unload a model where nothing uses it
    #[command(after_help = "Examples:\n  ingle models unload smollm2-135m-instruct")]
    Unload(NodeArgs),
    /// Say what a model needs and predict its speed on every node
    #[command(after_help = "Examples:\n  ingle models fit smollm2-135m-instruct --context 8192 --slots 4")]
    Fit(FitArgs),
    /// Say why a model is where it is, and what keeps work of it from each node
    #[command(
        after_help = "Examples:\n  ingle models explain smollm2-135m-instruct\n  ingle models explain smollm2-135m-instruct --json"
    )]
    Explain(ModelArgs),
    /// Fetch models: the three starter models, or any repository of the Hugging Face hub
    #[command(after_help = PULL_EXAMPLES)]
    Pull(PullArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only models of this kind
    #[arg(long, value_enum)]
    kind: Option<Kind>,
}

#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Name of the model
    model: String,
}

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Name of the model
    model: String,
    /// Identifier of the node [default: where it fits best, or everywhere to unload]
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    node: String,
}

#[derive(Debug, Args)]
pub(crate) struct FitArgs {
    /// Name of the model
    model: String,
    /// Length of the context, in tokens [default: the nodes' setting]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    /// Conversations at once [default: the nodes' setting]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    slots: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Repository on the hub, e.g. owner/name or owner/name@revision
    #[arg(value_name = "REPO[@REV]", required_unless_present = "starter", conflicts_with = "starter")]
    pub(crate) repository: Option<String>,
    /// Only these files; * and ? are wildcards
    #[arg(value_name = "FILES", conflicts_with = "starter")]
    pub(crate) files: Vec<String>,
    /// Fetch the two models to start with: all-MiniLM-L6-v2 (embeddings) and SmolLM2-135M-Instruct (LLM)
    #[arg(long)]
    pub(crate) starter: bool,
    /// Directory for models [default: models in the directory that `ingle up` uses]
    #[arg(long, value_name = "DIR")]
    pub(crate) into: Option<PathBuf>,
}

pub(crate) async fn run(client: &Client, command: ModelsCommand) -> Result<(), Failure> {
    let out = client.out;
    match command {
        ModelsCommand::Pull(args) => pull::run(out, args).await,
        ModelsCommand::List(args) => {
            let models = list(client, args.kind).await?;
            if out.json {
                return out.json(&json!({ "models": models.iter().map(json::model).collect::<Value>() }));
            }
            table(out, &models)
        }
        ModelsCommand::Show(args) => {
            let models = list(client, None).await?;
            let named = |m: &&v1::ModelStatus| name(m).is_some_and(|n| n == args.model);
            let model = models.iter().find(named).ok_or_else(|| {
                let mut failure = Failure::new(Exit::NotFound, format!("no node sees a model {:?}", args.model))
                    .hint("`ingle models list` shows what the nodes see");
                failure.code = Some(ingle_proto::ErrorCode::ModelNotFound.as_str());
                failure
            })?;
            show(out, model)
        }
        ModelsCommand::Load(args) => {
            let mut models = client.models().await?;
            let request = v1::LoadModelRequest { model: args.model.clone(), node_id: args.node };
            let answer = client.long_call(models.load_model(client.long_request(request))).await?;
            if out.json {
                return out.json(&json!({
                    "model": args.model, "node_id": answer.node_id, "memory_bytes": answer.memory_bytes, "load_ms": answer.load_ms,
                }));
            }
            out.line(format!(
                "{} is loaded on {}: {} in {}",
                args.model,
                answer.node_id,
                human::bytes(answer.memory_bytes),
                human::duration(std::time::Duration::from_millis(answer.load_ms))
            ))
        }
        ModelsCommand::Unload(args) => {
            let mut models = client.models().await?;
            let request = v1::UnloadModelRequest { model: args.model.clone(), node_id: args.node };
            let answer = client.call(models.unload_model(client.request(request))).await?;
            if out.json {
                return out.json(&json!({ "model": args.model, "node_ids": answer.node_ids }));
            }
            match answer.node_ids.as_slice() {
                [] => out.line(format!("{} was loaded nowhere", args.model)),
                nodes => out.line(format!("{} is unloaded from {}", args.model, nodes.join(", "))),
            }
        }
        ModelsCommand::Explain(args) => super::explaining::model(client, args.model).await,
        ModelsCommand::Fit(args) => {
            let mut models = client.models().await?;
            let request = v1::ExplainFitRequest {
                model: args.model,
                context: args.context.unwrap_or(0),
                slots: args.slots.unwrap_or(0),
            };
            fit(out, &client.call(models.explain_fit(client.request(request))).await?)
        }
    }
}

async fn list(client: &Client, kind: Option<Kind>) -> Result<Vec<v1::ModelStatus>, Failure> {
    let mut models = client.models().await?;
    let kind = kind.map_or(v1::JobKind::Unspecified, Kind::to_wire);
    Ok(client.call(models.list_models(client.request(v1::ListModelsRequest { kind: kind.into() }))).await?.models)
}

fn name(model: &v1::ModelStatus) -> Option<&str> {
    Some(model.info.as_ref()?.model.as_ref()?.name.as_str())
}

fn table(out: Out, models: &[v1::ModelStatus]) -> Result<(), Failure> {
    if models.is_empty() {
        return out.line("no models; `ingle models pull --starter` fetches three to start with");
    }
    let rows = models.iter().map(|model| {
        let info = model.info.clone().unwrap_or_default();
        let state = match (&info.problem, model.loaded_on.len()) {
            (problem, _) if !problem.is_empty() => out.paint(Colour::Red, &human::cut(problem, 80)),
            (_, 0) if model.seen_by.is_empty() => on_its_way(model).join("; "),
            (_, 0) => "not loaded".to_owned(),
            (_, n) => out.paint(Colour::Green, &format!("loaded on {n} of {}", model.seen_by.len().max(n))),
        };
        vec![
            name(model).unwrap_or_default().to_owned(),
            json::kind(info.kind()),
            info.architecture.clone(),
            info.quantisation.clone(),
            human::count(info.parameters),
            human::bytes(info.weight_bytes),
            match info.kind() {
                v1::JobKind::Embed if info.dimensions > 0 => format!("{} dimensions", info.dimensions),
                v1::JobKind::Ocr => "pages".to_owned(),
                _ => format!("{} tokens", info.context),
            },
            state,
        ]
    });
    out.table(&["MODEL", "KIND", "ARCHITECTURE", "TYPE", "PARAMETERS", "SIZE", "SHAPE", "STATE"], rows.collect())
}

fn show(out: Out, model: &v1::ModelStatus) -> Result<(), Failure> {
    if out.json {
        return out.json(&json::model(model));
    }
    let info = model.info.clone().unwrap_or_default();
    let digest: String = info.model.iter().flat_map(|m| m.digest.iter()).map(|b| format!("{b:02x}")).collect();
    let number = |n: u32| if n == 0 { String::new() } else { n.to_string() };
    let none = |list: &[String]| if list.is_empty() { "nowhere".to_owned() } else { list.join(", ") };
    out.facts(&[
        ("model", name(model).unwrap_or_default().to_owned()),
        ("problem", info.problem.clone()),
        ("kind", json::kind(info.kind())),
        ("architecture", info.architecture.clone()),
        ("type", info.quantisation.clone()),
        ("parameters", human::count(info.parameters)),
        ("weights", human::bytes(info.weight_bytes)),
        ("context", number(info.context)),
        ("dimensions", number(info.dimensions)),
        ("layers", number(info.layers)),
        ("width", number(info.width)),
        ("digest", if digest.is_empty() { "not read yet".into() } else { digest }),
        ("loaded on", none(&model.loaded_on)),
        ("seen by", none(&model.seen_by)),
        ("on its way", on_its_way(model).join("; ")),
    ])
}

/// How far a model's files have come, for each node that they are on their way to.
fn on_its_way(model: &v1::ModelStatus) -> Vec<String> {
    let told = |node: &v1::NodeFetch| {
        let fetch = node.fetch.unwrap_or_default();
        if fetch.bytes_total == 0 {
            return format!("waits to be read by {}", node.node_id);
        }
        let left = fetch.bytes_total.saturating_sub(fetch.bytes) as f64 / fetch.bytes_per_second.max(1.0);
        let left = std::time::Duration::try_from_secs_f64(left).unwrap_or_default();
        format!(
            "{} of {} are on {}, {}/s, {} left",
            human::bytes(fetch.bytes),
            human::bytes(fetch.bytes_total),
            node.node_id,
            human::bytes(fetch.bytes_per_second as u64),
            human::duration(left)
        )
    };
    model.fetching.iter().map(told).collect()
}

fn fit(out: Out, answer: &v1::ExplainFitResponse) -> Result<(), Failure> {
    if out.json {
        return out.json(&json::fit(answer));
    }
    let speed = |v: f64| if v > 0.0 { format!("{v:.0} tokens/s") } else { "–".to_owned() };
    let rows = answer.nodes.iter().map(|n| {
        let fits = if n.fits {
            out.paint(Colour::Green, "yes")
        } else {
            out.paint(Colour::Red, &format!("no: {}", n.why_not))
        };
        vec![
            n.node_id.clone(),
            fits,
            human::bytes(n.weights_bytes),
            human::bytes(n.kv_bytes),
            human::bytes(n.activation_bytes),
            format!("{} of {}", human::bytes(n.needed_bytes), human::bytes(n.available_bytes)),
            speed(n.tokens_per_second),
            speed(n.prefill_tokens_per_second),
            human::duration(std::time::Duration::from_millis(n.load_ms)),
        ]
    });
    out.table(
        &["NODE", "FITS", "WEIGHTS", "KV", "ACTIVATIONS", "NEEDED", "WRITES", "READS", "LOADS IN"],
        rows.collect(),
    )
}
