"""Writes tiny-bert/ and tiny-bert-onnx/, one random model in both forms, and tiny-bert-reference.json beside them.

Usage: make-tiny-bert.py MODEL_DIRECTORY, which holds the tokenizer.json to cut down.

Run with transformers 5.23.0, tokenizers 0.23.3, torch 2.15.0 and onnx 1.23.2 on Python 3.11. Some tensors are the same
on purpose: an export keeps one of them and gives the others' names to Identity nodes.
"""

import json
import pathlib
import shutil
import sys

import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel

HERE = pathlib.Path(__file__).parent
PLAIN, EXPORT = HERE / "tiny-bert", HERE / "tiny-bert-onnx"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "the refund order item customer return of a to and in is it for days shop money back how do i work what".split()
TEXTS = [
    "a",
    "How do refunds work?",
    "The customer may return an item within 30 days of the order.",
    "Café 返品 👍 !!!",
    "money back " * 40,
    "",
]


class Exported(BertModel):
    def forward(self, input_ids, attention_mask, token_type_ids):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return super().forward(**given).last_hidden_state


def tokenizer(source: pathlib.Path) -> dict:
    whole = json.loads((source / "tokenizer.json").read_text())
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    marks = "!?.,;:-'\"()[]{}/@#$%&*+=<>_"
    tokens = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *marks, *WORDS, "##s", "##ed", "##ing", "##er"]
    tokens = list(dict.fromkeys(tokens))
    whole["model"]["vocab"] = {token: at for at, token in enumerate(tokens)}
    for added in whole["added_tokens"]:
        added["id"] = SPECIAL.index(added["content"])
    for name, special in whole["post_processor"].get("special_tokens", {}).items():
        special["ids"] = [SPECIAL.index(name)]
    for name in ("sep", "cls"):
        if name in whole["post_processor"]:
            token = whole["post_processor"][name][0]
            whole["post_processor"][name] = [token, SPECIAL.index(token)]
    whole["truncation"] = whole["padding"] = None
    return whole


def main() -> None:
    torch.manual_seed(7)
    whole = tokenizer(pathlib.Path(sys.argv[1]))
    config = BertConfig(
        vocab_size=len(whole["model"]["vocab"]),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    model = Exported(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            same = name.startswith("encoder.layer.1.attention") and name.endswith("bias")
            if not same:
                tensor.add_(torch.randn_like(tensor) * 0.2)

    for directory in (PLAIN, EXPORT):
        shutil.rmtree(directory, ignore_errors=True)
        (directory / "1_Pooling").mkdir(parents=True)
        (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}\n')
        (directory / "tokenizer.json").write_text(json.dumps(whole, ensure_ascii=False) + "\n")
    model.save_pretrained(PLAIN)
    settings = json.loads((PLAIN / "config.json").read_text())
    settings["architectures"] = ["BertModel"]
    for directory in (PLAIN, EXPORT):
        (directory / "config.json").write_text(json.dumps(settings, indent=2) + "\n")

    (EXPORT / "onnx").mkdir()
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 5, 6, 3, 0]])
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        model,
        (ids, (ids != 0).long(), torch.zeros_like(ids)),
        EXPORT / "onnx" / "model.onnx",
        dynamo=False,
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "batch", 1: "tokens"} for name in [*names, "last_hidden_state"]},
        opset_version=14,
    )

    encode = Tokenizer.from_file(str(PLAIN / "tokenizer.json"))
    encode.enable_truncation(64)
    reference = []
    for text in TEXTS:
        ids = torch.tensor([encode.encode(text).ids])
        with torch.no_grad():
            states = model(ids, torch.ones_like(ids), torch.zeros_like(ids))[0]
        embedding = torch.nn.functional.normalize(states.mean(0), dim=0)
        reference.append({"text": text, "embedding": [float(f"{value:.7g}") for value in embedding.tolist()]})
    lines = ",\n".join(json.dumps(line, ensure_ascii=False) for line in reference)
    (HERE / "tiny-bert-reference.json").write_text(f"[\n{lines}\n]\n")


main()
