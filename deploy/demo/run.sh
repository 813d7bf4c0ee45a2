#!/usr/bin/env bash
# The demonstration: scans and documents read over NFS become text, vectors and summaries, on two nodes, and a model answers.
# KEEP=1 leaves the cluster running. PORT_BASE moves its ports. It needs no account, no GPU and nothing running before.
set -euo pipefail
cd "$(dirname "$0")/../.."

demo="$PWD/.demo"
base="${PORT_BASE:-7700}"
keep="${KEEP:-}"
began=$SECONDS
export INGLE_COORDINATOR="http://127.0.0.1:$base"
unset INGLE_TLS_CA INGLE_TLS_CERT INGLE_TLS_KEY INGLE_TIMEOUT

bold=""; plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m'; plain=$'\e[0m'; fi
say() { printf '\n%s── %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$bold" "$*" "$plain"; }

# protoc is of use only with the files that its own types stand in: Debian has them in another package.
protoc_works() {
    local probe code=0
    probe=$(mktemp -d)
    printf 'syntax = "proto3";\nimport "google/protobuf/descriptor.proto";\n' > "$probe/probe.proto"
    protoc -I "$probe" --descriptor_set_out=/dev/null "$probe/probe.proto" 2>/dev/null || code=$?
    rm -rf "$probe"
    return "$code"
}

# What the build and the starter models need, by package name, and only what is missing.
need() {
    local missing=()
    protoc_works || missing+=(protobuf-compiler libprotobuf-dev)
    command -v cc >/dev/null || missing+=(build-essential)
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    if ! command -v cargo >/dev/null; then
        echo "error: cargo is not installed" >&2
        echo "hint: https://rustup.rs installs Rust; the pinned version comes by itself" >&2
        exit 1
    fi
    [ ${#missing[@]} -eq 0 ] && return
    local as=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || { echo "error: missing: ${missing[*]}; install them as root" >&2; exit 1; }
        as=(sudo)
    fi
    command -v apt-get >/dev/null || { echo "error: missing: ${missing[*]}; install them with your package manager" >&2; exit 1; }
    say "Installing ${missing[*]}"
    "${as[@]}" apt-get install -y --no-install-recommends "${missing[@]}" \
        || { "${as[@]}" apt-get update && "${as[@]}" apt-get install -y --no-install-recommends "${missing[@]}"; }
}

up=""
finish() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$up" ] && kill -0 "$up" 2>/dev/null; then
        if [ -n "$keep" ] && [ "$code" -eq 0 ]; then
            disown "$up" 2>/dev/null || true
            exit 0
        fi
        say "Stopping"
        kill -TERM "$up" 2>/dev/null || true
        wait "$up" 2>/dev/null || true
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

need
say "Building everything (the first time takes some minutes)"
cargo build --release --locked
bin="${CARGO_TARGET_DIR:-$PWD/target}/release"
export PATH="$bin:$PATH"
built=$SECONDS

say "Fetching the starter models"
mkdir -p "$demo"
show "ingle models pull --starter --into .demo/models"
ingle models pull --starter --into "$demo/models"

# Both begin anew each time, so that there is something to see.
rm -rf "$demo/share" "$demo/results"
cp -R deploy/demo/share "$demo/share"
mkdir "$demo/results"

say "Starting a cluster: coordinator, gateway, an NFS server per share, two nodes"
show "ingle up --nodes 2 --share docs=.demo/share --share results=.demo/results --models .demo/models --data .demo/data"
mkdir -p "$demo/data"
ingle up --nodes 2 --share "docs=$demo/share" --share "results=$demo/results" --models "$demo/models" \
    --data "$demo/data" --port-base "$base" > "$demo/up.log" 2>&1 &
up=$!
waited=0
until grep -q 'Inglenook is up' "$demo/up.log"; do
    if ! kill -0 "$up" 2>/dev/null || [ "$waited" -gt 1200 ]; then
        cat "$demo/up.log" >&2
        exit 1
    fi
    sleep 0.1
    waited=$((waited + 1))
done
ingle status
show "ingle models list"
ingle models list
started=$SECONDS

# A job that has trouble with a document exits with 1, and two here are broken on purpose.
job() {
    local shown="" word
    for word in "$@"; do
        case "$word" in *[!A-Za-z0-9_./:=@%+,-]*) word="'$word'" ;; esac
        shown="$shown $word"
    done
    show "ingle$shown"
    local code=0
    ingle "$@" || code=$?
    [ "$code" -le 1 ] || exit "$code"
}

say "Reading the scans: pictures and PDF pages become text (one picture claims ten billion pixels)"
job submit ocr nas://docs/ --output nas://results/text --label demo=ocr --wait
recognised=$SECONDS
for text in "$demo/results/text/scans/receipt hardware.jpg.txt" "$demo/results/text/scans/garden-club.tif.txt"; do
    [ -f "$text" ] || continue
    printf '\n%s\n' "${text#"$demo/results/"}"
    sed 's/^/    /' < "$text"
done

say "Embedding every document, scans by the text read from them (one file is torn on purpose)"
job submit embed nas://docs/ --text-from nas://results/text --output nas://results/vectors --label demo=embed --wait
embedded=$SECONDS

say "What became of each document"
embed_job=$(ingle jobs list --label demo=embed --limit 1 --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["jobs"][0]["job_id"])')
show "ingle jobs items $embed_job"
ingle jobs items "$embed_job"

say "Summarising the notes with a small language model"
job submit generate 'nas://docs/notes/*' --output nas://results/summaries --label demo=generate --max-tokens 48 \
    --prompt 'Summarise this note in one sentence.

{{ document }}' --wait
summarised=$SECONDS
for summary in "$demo"/results/summaries/*.txt "$demo"/results/summaries/*/*.txt; do
    [ -f "$summary" ] || continue
    printf '\n%s\n' "${summary#"$demo/results/summaries/"}"
    fold -s -w 96 < "$summary" | sed 's/^/    /'
done

say "Asking a question"
show "ingle chat 'What is a hearth? Answer in one sentence.' --max-tokens 60"
ingle chat 'What is a hearth? Answer in one sentence.' --max-tokens 60 --stats
asked=$SECONDS

say "The same job again: only what changed is done"
printf '\nAdded by the demonstration: the hedge was cut in October.\n' >> "$demo/share/notes/meeting-2026-03-04.md"
job submit embed nas://docs/ --text-from nas://results/text --output nas://results/vectors --label demo=again --wait
again=$SECONDS

say "What was done, and how fast"
ingle jobs list --json | python3 "$PWD/deploy/demo/table.py" "$((built - began))" "$((started - built))" \
    "$((recognised - started))" "$((embedded - recognised))" "$((summarised - embedded))" "$((asked - summarised))" "$((again - asked))"
cat <<EOF

Results, as files that anything can read:
  $demo/results/text         what the scans say, as text and as JSON with lines, boxes and confidences
  $demo/results/vectors      Parquet: path, passage, text, vector (DuckDB, pandas and LanceDB read it as it is)
  $demo/results/summaries    text and JSON beside each other, named after their documents
Logs: $demo/data/logs
EOF

if [ -n "$keep" ]; then
    cat <<EOF

The cluster goes on running (process $up; \`kill $up\` stops it). Talk to it:
  export INGLE_COORDINATOR=$INGLE_COORDINATOR PATH=$bin:\$PATH
  ingle chat
  grpcurl -plaintext 127.0.0.1:$base list
  grpcurl -plaintext 127.0.0.1:$base ingle.v1.Cluster/ListNodes
  grpcurl -plaintext -d '{"texts":["good morning"]}' 127.0.0.1:$base ingle.v1.Inference/Embed
  grpcurl -plaintext -d '{"messages":[{"role":"user","content":[{"text":"Say hello."}]}],"max_tokens":16}' 127.0.0.1:$base ingle.v1.Inference/Generate
  grpcurl -plaintext -d '{"job_id":"$embed_job","outcomes":["ITEM_OUTCOME_FAILED"]}' 127.0.0.1:$base ingle.v1.Jobs/ListItems
  grpcurl -plaintext 127.0.0.1:$((base + 20)) ingle.v1.Storage/ListExports
EOF
fi
