"""Embeds texts with ONNX Runtime in single precision: what the local model's throughput is compared with.

Usage: peer.py --texts FILE.jsonl [--model DIRECTORY] [--threads N] [--batch N] [--rounds N] [--check]

FILE holds a JSON string, or an object with "text", on each line. The same model.safetensors is exported to ONNX once
(next to the virtual environment this runs in) and its attention fused by ONNX Runtime's own optimiser. Texts are sorted by length, tokenized by
Hugging Face's tokenizers and padded to the longest of their batch; the time counts tokenizing, the model, pooling and
normalising, not loading. Without --batch, several batch sizes are tried on a part of the texts and the fastest is used.
Prints one JSON line: texts, tokens (padding left out, special tokens included), seconds, and the batch size.
"""

import argparse
import hashlib
import json
import os
import pathlib
import sys
import time

import numpy
import onnxruntime
import tokenizers

SIZES = (1, 4, 8, 16, 32)


def export(model: pathlib.Path) -> pathlib.Path:
    """The model as ONNX, made if it is not there yet."""
    stamp = hashlib.sha256(str(model).encode() + str((model / "model.safetensors").stat().st_size).encode())
    target = pathlib.Path(sys.prefix) / f"{model.name}-{stamp.hexdigest()[:12]}-fused.onnx"
    if target.exists():
        return target
    import torch
    import transformers

    network = transformers.AutoModel.from_pretrained(model, attn_implementation="eager").eval()

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.network(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    sample = tuple(torch.ones(2, 8, dtype=torch.int64) for _ in range(3))
    names = ["input_ids", "attention_mask", "token_type_ids"]
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "last_hidden_state"]}
    part = target.with_suffix(".part.onnx")
    with torch.no_grad():
        torch.onnx.export(
            Encoder(), sample, str(part), input_names=names, output_names=["last_hidden_state"],
            dynamic_axes=axes, opset_version=17, dynamo=False,
        )
    # Attention, GELU and the norms become one operator each, which ONNX Runtime does not do by itself when it loads.
    from onnxruntime.transformers import optimizer

    settings = network.config
    fused = optimizer.optimize_model(
        str(part), model_type="bert", num_heads=settings.num_attention_heads, hidden_size=settings.hidden_size, opt_level=1
    )
    fused.save_model_to_file(str(part))
    part.rename(target)
    return target


class Peer:
    """A session and what goes around it."""

    def __init__(self, model: pathlib.Path, threads: int):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self.session = onnxruntime.InferenceSession(str(export(model)), options, providers=["CPUExecutionProvider"])
        self.tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        settings = model / "sentence_bert_config.json"
        longest = json.loads(settings.read_text())["max_seq_length"] if settings.exists() else 512
        self.tokenizer.enable_truncation(longest)
        self.tokenizer.no_padding()

    def embed(self, texts: list[str], size: int) -> tuple[numpy.ndarray, int]:
        """Embeddings in the order of the texts, and how many tokens went in."""
        encodings = self.tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda index: len(encodings[index].ids))
        results = None
        for start in range(0, len(order), size):
            part = order[start : start + size]
            length = max(len(encodings[index].ids) for index in part)
            ids = numpy.zeros((len(part), length), dtype=numpy.int64)
            mask = numpy.zeros_like(ids)
            for row, index in enumerate(part):
                own = encodings[index].ids
                ids[row, : len(own)] = own
                mask[row, : len(own)] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
            inputs = {given.name: inputs[given.name] for given in self.session.get_inputs()}
            hidden = self.session.run(["last_hidden_state"], inputs)[0]
            weights = mask[:, :, None].astype(numpy.float32)
            pooled = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
            pooled /= numpy.linalg.norm(pooled, axis=1, keepdims=True)
            if results is None:
                results = numpy.empty((len(texts), pooled.shape[1]), dtype=numpy.float32)
            results[part] = pooled
        return results, sum(len(encoding.ids) for encoding in encodings)

    def fastest(self, texts: list[str]) -> int:
        """The batch size that does best on a part of the texts."""
        sample = texts[:: max(1, len(texts) // 96)]
        self.embed(sample[:16], 8)

        def seconds(size: int) -> float:
            start = time.perf_counter()
            self.embed(sample, size)
            return time.perf_counter() - start

        return min(SIZES, key=lambda size: min(seconds(size), seconds(size)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, default=os.environ.get("HELPER_MODEL"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--check", action="store_true", help="compare with the embeddings in the file instead")
    arguments = parser.parse_args()
    if arguments.model is None:
        parser.error("--model or HELPER_MODEL is needed")
    rows = [json.loads(line) for line in arguments.texts.read_text().splitlines()]
    texts = [row if isinstance(row, str) else row["text"] for row in rows]
    peer = Peer(pathlib.Path(arguments.model), arguments.threads)
    if arguments.check:
        found, _ = peer.embed(texts, 4)
        cosines = [float(numpy.dot(a, row["embedding"])) for a, row in zip(found, rows)]
        print(json.dumps({"texts": len(texts), "least_cosine": round(min(cosines), 7)}))
        return
    size = arguments.batch or peer.fastest(texts)
    for _ in range(arguments.rounds):
        start = time.perf_counter()
        _, tokens = peer.embed(texts, size)
        seconds = time.perf_counter() - start
        print(json.dumps({"texts": len(texts), "tokens": tokens, "seconds": round(seconds, 4), "batch": size}), flush=True)


main()
