#!/usr/bin/env python3
"""ONNX Runtime embedding the same texts with the same weights, asked line by line in JSON.

onnx_embed.py --model DIR --threads N, where DIR holds config.json, model.safetensors and tokenizer.json of a BERT encoder.

  {"texts": […]}    keeps and tokenises them   -> {"name": …}
  {"batch": N}      embeds all of them         -> {"seconds": …}
  {"vectors": N}    the first N texts' vectors -> {"vectors": [[…], …]}

The graph is built here from the safetensors, with the fused operators that ONNX Runtime's own optimiser makes of an
exported BERT (Attention, SkipLayerNormalization, BiasGelu): the peer runs at its best. Texts are sorted by length and padded
within a batch only. Tokenising counts, as it does for us.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer

TOKENS_MAX = 256


def safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    body = memoryview(raw)[8 + length :]
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            start, end = entry["data_offsets"]
            tensors[name] = np.frombuffer(body[start:end], dtype="<f4").reshape(entry["shape"])
    return tensors


class Graph:
    """Nodes and weights, added one after another."""

    def __init__(self):
        self.nodes, self.weights, self.count = [], [], 0

    def weight(self, array) -> str:
        self.count += 1
        name = f"w{self.count}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, inputs: list[str], domain: str = "", outputs: int = 1, **attributes) -> str:
        self.count += 1
        names = [f"t{self.count}"] + [""] * (outputs - 1)
        self.nodes.append(helper.make_node(kind, inputs, names, domain=domain, **attributes))
        return names[0]


def build(folder: pathlib.Path) -> bytes:
    config = json.loads((folder / "config.json").read_text())
    tensors = safetensors(folder / "model.safetensors")
    tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    width, heads, epsilon = config["hidden_size"], config["num_attention_heads"], config["layer_norm_eps"]
    graph, fused = Graph(), "com.microsoft"

    def dense(prefix: str) -> tuple[np.ndarray, np.ndarray]:
        return tensors[f"{prefix}.weight"].T, tensors[f"{prefix}.bias"]

    def norm(prefix: str) -> list[str]:
        return [graph.weight(tensors[f"{prefix}.LayerNorm.weight"]), graph.weight(tensors[f"{prefix}.LayerNorm.bias"])]

    words = graph.add("Gather", [graph.weight(tensors["embeddings.word_embeddings.weight"]), "ids"])
    places = graph.add("Gather", [graph.weight(tensors["embeddings.position_embeddings.weight"]), "positions"])
    kind = graph.weight(tensors["embeddings.token_type_embeddings.weight"][0])
    hidden = graph.add("Add", [graph.add("Add", [words, places]), kind])
    hidden = graph.add("LayerNormalization", [hidden, *norm("embeddings")], epsilon=epsilon)
    for layer in range(config["num_hidden_layers"]):
        base = f"encoder.layer.{layer}"
        parts = [dense(f"{base}.attention.self.{part}") for part in ("query", "key", "value")]
        weights = graph.weight(np.concatenate([weight for weight, _ in parts], axis=1))
        biases = graph.weight(np.concatenate([bias for _, bias in parts]))
        seen = graph.add("Attention", [hidden, weights, biases, "mask"], fused, num_heads=heads)
        weight, bias = dense(f"{base}.attention.output.dense")
        mixed = graph.add("MatMul", [seen, graph.weight(weight)])
        inputs = [mixed, hidden, *norm(f"{base}.attention.output"), graph.weight(bias)]
        hidden = graph.add("SkipLayerNormalization", inputs, fused, epsilon=epsilon)
        weight, bias = dense(f"{base}.intermediate.dense")
        wide = graph.add("BiasGelu", [graph.add("MatMul", [hidden, graph.weight(weight)]), graph.weight(bias)], fused)
        weight, bias = dense(f"{base}.output.dense")
        narrow = graph.add("MatMul", [wide, graph.weight(weight)])
        inputs = [narrow, hidden, *norm(f"{base}.output"), graph.weight(bias)]
        hidden = graph.add("SkipLayerNormalization", inputs, fused, epsilon=epsilon)
    graph.nodes.append(helper.make_node("Identity", [hidden], ["hidden"]))
    inputs = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("positions", TensorProto.INT64, ["length"]),
        helper.make_tensor_value_info("mask", TensorProto.INT32, ["batch", "length"]),
    ]
    outputs = [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "length", width])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(fused, 1)]
    body = helper.make_graph(graph.nodes, "encoder", inputs, outputs, graph.weights)
    model = helper.make_model(body, opset_imports=opsets, ir_version=9)
    return model.SerializeToString()


class Encoder:
    def __init__(self, folder: pathlib.Path, threads: int):
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(TOKENS_MAX)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(build(folder), options, providers=["CPUExecutionProvider"])
        self.texts: list[str] = []

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        encoded = [encoding.ids for encoding in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
        vectors = None
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            length = max(len(encoded[index]) for index in chosen)
            ids = np.zeros((len(chosen), length), dtype=np.int64)
            mask = np.zeros((len(chosen), length), dtype=np.int32)
            for row, index in enumerate(chosen):
                ids[row, : len(encoded[index])] = encoded[index]
                mask[row, : len(encoded[index])] = 1
            feed = {"ids": ids, "positions": np.arange(length, dtype=np.int64), "mask": mask}
            (hidden,) = self.session.run(None, feed)
            weights = mask[:, :, None].astype(np.float32)
            mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            mean /= np.linalg.norm(mean, axis=1, keepdims=True)
            if vectors is None:
                vectors = np.empty((len(texts), mean.shape[1]), dtype=np.float32)
            vectors[chosen] = mean
        return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description="ONNX Runtime as a peer")
    parser.add_argument("--model", required=True, type=pathlib.Path)
    parser.add_argument("--threads", required=True, type=int)
    options = parser.parse_args()
    encoder = Encoder(options.model, options.threads)
    for line in sys.stdin:
        request = json.loads(line)
        if "texts" in request:
            encoder.texts = request["texts"]
            answer = {"name": f"onnxruntime {onnxruntime.__version__} f32, fused graph, sorted"}
        elif "batch" in request:
            begun = time.perf_counter()
            encoder.embed(encoder.texts, request["batch"])
            answer = {"seconds": time.perf_counter() - begun}
        else:
            answer = {"vectors": encoder.embed(encoder.texts[: request["vectors"]], 4).tolist()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
