#!/usr/bin/env python3
"""Keeps a cluster busy as people would, and says what of it went wrong: load.py --cluster A,B,C --pki DIR --ingle FILE --state DIR

Folder jobs and chats go through `ingle`, more chats and embeddings through a stock gRPC library that learns the methods by reflection
and holds no code of this project. Runs until its standard input ends, finishes what it is at, and prints one line of JSON:
what was done, and what failed, broke, was lost or came twice, each with its words. `--state` gets a file `begun` once each kind of work
succeeded once.
"""

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2

QUESTIONS = ["Name three uses of a hearth.", "What is snow?", "Why is the sky blue?", "Tell me about bread."]
TOKENS = 24
DOCUMENTS = 12
# People read before they ask again; without a pause they would keep batch work waiting for as long as they ask.
PAUSE_S = 1.0
# What any client of gRPC can be told to do: a call that was never begun, or that found nobody, is made again.
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "ingle.v1.Inference"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.5s",
                "maxBackoff": "4s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}


class Tally:
    """What was done and what wasn't, by all threads."""

    def __init__(self, state: pathlib.Path, kinds: list[str]):
        self.lock = threading.Lock()
        self.done: dict[str, int] = {kind: 0 for kind in kinds}
        self.wrong: dict[str, list[str]] = {"failed": [], "broken": [], "lost": [], "doubled": []}
        self.slowest: dict[str, float] = {}
        self.state = state
        self.stop = threading.Event()

    def well(self, kind: str, seconds: float) -> None:
        with self.lock:
            self.done[kind] += 1
            self.slowest[kind] = max(seconds, self.slowest.get(kind, 0.0))
            if all(self.done.values()):
                (self.state / "begun").touch()

    def ill(self, how: str, what: str) -> None:
        with self.lock:
            self.wrong[how].append(f"{time.strftime('%H:%M:%S')} {what[:600]}")


def frames_tell(frames: list[dict], tally: Tally, what: str) -> bool:
    """Whether a stream was whole: a start, every token once and in order, one end."""
    indexes = [int(frame["delta"].get("index", 0)) for frame in frames if "delta" in frame]
    ends = sum("finished" in frame for frame in frames)
    if len(indexes) != len(set(indexes)):
        tally.ill("doubled", f"{what}: tokens {indexes}")
    elif ends != 1 or indexes != list(range(len(indexes))):
        tally.ill("broken", f"{what}: {ends} ends, tokens {indexes}")
    else:
        return True
    return False


class Cli:
    """`ingle`, as a person would use it."""

    def __init__(self, options: argparse.Namespace):
        self.program = options.ingle
        names = options.cluster.split(",")
        self.env = {
            **os.environ,
            "INGLE_COORDINATOR": ",".join(f"https://{name}:7700" for name in names),
            "INGLE_TLS_CA": f"{options.pki}/ca.pem",
            "INGLE_TLS_CERT": f"{options.pki}/client.pem",
            "INGLE_TLS_KEY": f"{options.pki}/client.key",
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([self.program, *arguments], env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def chats(self, tally: Tally) -> None:
        for question in itertools.cycle(QUESTIONS):
            if tally.stop.wait(PAUSE_S):
                return
            begun = time.monotonic()
            ran = self.run("chat", "--json", "--max-tokens", str(TOKENS), "--timeout", "2m", question)
            what = f"ingle chat: exit {ran.returncode}: {ran.stderr.strip()}"
            frames = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
            if ran.returncode != 0:
                tally.ill("broken" if any("delta" in frame for frame in frames) else "failed", what)
            elif frames_tell(frames, tally, what):
                tally.well("chats", time.monotonic() - begun)

    def jobs(self, tally: Tally) -> None:
        for number in itertools.count():
            if tally.stop.is_set():
                return
            begun = time.monotonic()
            output = f"nas://docs/out-{os.getpid()}-{number}"
            key = f"rollout-{os.getpid()}-{number}"
            ran = self.run(
                "submit", "generate", "nas://docs/in", "--output", output, "--wait", "--json", "--max-tokens", "8",
                "--idempotency-key", key, "--timeout", "5m",
            )  # fmt: skip
            if ran.returncode != 0:
                tally.ill("failed", f"ingle submit: exit {ran.returncode}: {ran.stderr.strip()} {ran.stdout.strip()[-300:]}")
                continue
            job = json.loads(ran.stdout.strip().splitlines()[-1])["job"]
            # Who asks for a list while the gateway is being exchanged is told to come back (exit code 6), and does.
            for _ in range(60):
                listed = self.run("jobs", "items", job["job_id"], "--json")
                if listed.returncode != 6 or tally.stop.wait(1.0):
                    break
            names = [json.loads(line).get("name") for line in listed.stdout.splitlines() if '"name"' in line]
            if listed.returncode != 0:
                tally.ill("failed", f"ingle jobs items: exit {listed.returncode}: {listed.stderr.strip()}")
            elif len(set(names)) < DOCUMENTS or job["counts"]["published"] < DOCUMENTS:
                tally.ill("lost", f"{output}: {job['counts']}, {sorted(set(names))}")
            elif len(names) > DOCUMENTS or job["counts"]["published"] > DOCUMENTS:
                tally.ill("doubled", f"{output}: {job['counts']}, {sorted(names)}")
            else:
                tally.well("jobs", time.monotonic() - begun)
                with (tally.state / "outputs").open("a") as outputs:
                    print(output.removeprefix("nas://docs/"), file=outputs)


class Stock:
    """A gRPC client of somebody else: methods by reflection, several addresses, the library's own retries."""

    def __init__(self, options: argparse.Namespace):
        pki = pathlib.Path(options.pki)
        certificates = grpc.ssl_channel_credentials(
            (pki / "ca.pem").read_bytes(), (pki / "client.key").read_bytes(), (pki / "client.pem").read_bytes()
        )
        target = "ipv4:" + ",".join(f"{name}:7700" for name in options.cluster.split(","))
        self.channel = grpc.secure_channel(
            target,
            certificates,
            [("grpc.service_config", json.dumps(RETRIES)), ("grpc.ssl_target_name_override", "localhost"), ("grpc.enable_retries", 1)],
        )
        self.pool = descriptor_pool.DescriptorPool()
        self.seen: set[str] = set()
        self.learn(reflection_pb2.ServerReflectionRequest(file_containing_symbol="ingle.v1.Inference"))
        self.service = self.pool.FindServiceByName("ingle.v1.Inference")

    def learn(self, request: reflection_pb2.ServerReflectionRequest) -> None:
        ask = self.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        files = {}
        for answer in ask(iter([request]), timeout=30, wait_for_ready=True):
            for text in answer.file_descriptor_response.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(text)
                files[file.name] = file
        for file in files.values():
            if file.name in self.seen:
                continue
            self.seen.add(file.name)
            for needed in file.dependency:
                if needed not in self.seen:
                    self.learn(reflection_pb2.ServerReflectionRequest(file_by_filename=needed))
            self.pool.Add(file)

    def method(self, name: str):
        method = self.service.methods_by_name[name]
        takes, gives = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        kind = "unary_stream" if method.server_streaming else "unary_unary"
        call = getattr(self.channel, kind)(f"/ingle.v1.Inference/{name}", takes.SerializeToString, gives.FromString)
        return lambda body: call(json_format.ParseDict(body, takes(), descriptor_pool=self.pool), timeout=120, wait_for_ready=True)

    def streams(self, tally: Tally) -> None:
        generate = self.method("Generate")
        for question in itertools.cycle(QUESTIONS):
            if tally.stop.wait(PAUSE_S):
                return
            begun, frames = time.monotonic(), []
            body = {"messages": [{"role": "user", "content": [{"text": question}]}], "max_tokens": TOKENS}
            try:
                for frame in generate(body):
                    frames.append(json_format.MessageToDict(frame, preserving_proto_field_name=True))
            except grpc.RpcError as error:
                tokens = sum("delta" in frame for frame in frames)
                what = f"Generate after {tokens} tokens and {time.monotonic() - begun:.1f} s: {error.code().name}: {error.details()}"
                tally.ill("broken" if tokens else "failed", what)
                continue
            if frames_tell(frames, tally, "Generate"):
                tally.well("streams", time.monotonic() - begun)

    def embeddings(self, tally: Tally) -> None:
        embed = self.method("Embed")
        while not tally.stop.wait(PAUSE_S / 2):
            begun = time.monotonic()
            try:
                answer = embed({"texts": QUESTIONS})
            except grpc.RpcError as error:
                tally.ill("failed", f"Embed after {time.monotonic() - begun:.1f} s: {error.code().name}: {error.details()}")
                continue
            if len(answer.embeddings) == len(QUESTIONS):
                tally.well("embeddings", time.monotonic() - begun)
            else:
                tally.ill("lost", f"Embed: {len(answer.embeddings)} of {len(QUESTIONS)} vectors")


def main() -> int:
    parser = argparse.ArgumentParser(description="load on a cluster")
    for option in ("cluster", "pki", "ingle", "state"):
        parser.add_argument(f"--{option}", required=True)
    options = parser.parse_args()
    state = pathlib.Path(options.state)
    state.mkdir(parents=True, exist_ok=True)
    tally = Tally(state, ["jobs", "chats", "streams", "embeddings"])
    cli, stock = Cli(options), Stock(options)
    work = [cli.jobs, cli.chats, stock.streams, stock.embeddings]

    def watched(task) -> None:
        try:
            task(tally)
        except Exception as error:  # A thread that ends unseen would look like one with nothing to report.
            tally.ill("failed", f"{task.__name__}: {error!r}")

    threads = [threading.Thread(target=watched, args=(task,), name=task.__name__, daemon=True) for task in work]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    tally.stop.set()
    for thread in threads:
        thread.join(timeout=300)
    unfinished = [thread.name for thread in threads if thread.is_alive()]
    if unfinished:
        tally.ill("failed", f"still at work after 300 s: {unfinished}")
    print(json.dumps({"done": tally.done, "slowest_s": {kind: round(s, 1) for kind, s in tally.slowest.items()}, **tally.wrong}), flush=True)
    return 1 if any(tally.wrong.values()) else 0


if __name__ == "__main__":
    # Threads that hang are not waited for.
    code = main()
    os._exit(code)
