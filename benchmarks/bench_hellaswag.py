"""HellaSwag: how fast it is scored, and what SmolLM2-135M-Instruct gets in every protocol.

    python benchmarks/bench_hellaswag.py speed 100      100 items by a model of GPT-2's shape, beside three plain loops
    python benchmarks/bench_hellaswag.py figures 150    150 items by SmolLM2-135M-Instruct, a 4-bit file

Items are taken from all over ../shared/data/hellaswag/hellaswag_val_5000.jsonl.gz at equal distances. One thread; times
are CPU seconds of the process, so that neighbours on the machine count little, and the ways of scoring take turns block
by block. Results go to benchmarks/hellaswag.json, each part with its own provenance.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.provenance import provenance
from raygpt.data.tokenizer import Tokenizer, load_tokenizer
from raygpt.model.gpt import GPT, GPTConfig
from raygpt.scoring import hellaswag
from raygpt.scoring.likelihood import ModelScorer

SHARED = Path(__file__).resolve().parent.parent / ".." / "shared" / "data"
ITEMS = SHARED / "hellaswag" / "hellaswag_val_5000.jsonl.gz"
RESULT = Path(__file__).with_name("hellaswag.json")
BLOCK = 20  # items between two turns
PUBLISHED = {
    "value": 0.409,
    "items": 10042,
    "protocol": "lighteval, zero-shot, chat template, bf16 weights",
    "source": "model card of HuggingFaceTB/SmolLM2-135M-Instruct",
}


def main(part: str, count: int) -> None:
    torch.set_num_threads(1)
    items = hellaswag.read_items(str(ITEMS))
    items = items[:: len(items) // count][:count]
    result = {"speed": speed, "figures": figures}[part](items)
    made = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    made[part] = {**result, "provenance": provenance("torch", "transformers", "tokenizers")}
    RESULT.write_text(json.dumps(made, indent=2) + "\n")
    print(json.dumps(made[part], indent=2))


def speed(items: list[hellaswag.Item]) -> dict[str, Any]:
    """CPU seconds an item by four ways that give the same sums."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = load_tokenizer(str(SHARED / "gpt2_bpe"))
    torch.manual_seed(0)
    ours = GPT(GPTConfig(vocab_size=50257)).eval()
    theirs = GPT2LMHeadModel(GPT2Config()).eval()
    scorer = ModelScorer("124M", ours, tokenizer)

    def engine(block: list[hellaswag.Item]) -> list[float]:
        asked = scorer.ask(hellaswag.questions(block, "build_nanogpt"))
        return [one.logprob for scores in asked for one in scores]

    ways: dict[str, Callable[[list[hellaswag.Item]], list[float]]] = {
        "raygpt": engine,
        "four rows an item, same model": lambda block: four_rows(block, tokenizer, ours),
        "four rows an item, transformers' GPT-2": lambda block: four_rows(
            block, tokenizer, lambda tokens: theirs(tokens, use_cache=False).logits
        ),
        "one row at a time, same model": lambda block: one_row(block, tokenizer, ours),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    apart = 0.0
    with torch.no_grad():
        for way in ways.values():
            way(items[:2])
        for start in range(0, len(items), BLOCK):
            block = items[start : start + BLOCK]
            sums = {}
            for name, way in ways.items():
                begin = time.process_time()
                sums[name] = way(block)
                seconds[name].append(time.process_time() - begin)
            for name in ("four rows an item, same model", "one row at a time, same model"):
                apart = max(apart, *(abs(a - b) for a, b in zip(sums["raygpt"], sums[name])))
    own = seconds["raygpt"]
    return {
        "model": "GPT-2's shape, 124M parameters, fp32, random weights",
        "protocol": "build_nanogpt",
        "items": len(items),
        "threads": 1,
        "cpu_seconds_per_item": {name: sum(values) / len(items) for name, values in seconds.items()},
        "times_raygpt": {
            name: {
                "all": sum(values) / sum(own),
                "by_block": [round(one / mine, 2) for one, mine in zip(values, own)],
            }
            for name, values in seconds.items()
            if name != "raygpt"
        },
        "largest_difference_nats": apart,
    }


def four_rows(
    items: list[hellaswag.Item], tokenizer: Tokenizer, model: Callable[[torch.Tensor], torch.Tensor]
) -> list[float]:
    """The loop of build-nanogpt's hellaswag.py: a batch of an item's four rows, padded, logits of all tokens."""
    sums: list[float] = []
    for item in items:
        context = tokenizer.encode(item.ctx).tolist()
        ends = [tokenizer.encode(" " + ending).tolist() for ending in item.endings]
        tokens = torch.zeros(4, len(context) + max(map(len, ends)), dtype=torch.long)
        mask = torch.zeros(tokens.shape)
        for row, end in enumerate(ends):
            tokens[row, : len(context) + len(end)] = torch.tensor(context + end)
            mask[row, len(context) : len(context) + len(end)] = 1
        logits = model(tokens)[:, :-1].contiguous()
        losses = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(4, -1)
        sums += (-(losses * mask[:, 1:]).sum(dim=1)).tolist()
    return sums


def one_row(items: list[hellaswag.Item], tokenizer: Tokenizer, model: GPT) -> list[float]:
    """A context and an ending at a time, logits of all tokens, as lm-evaluation-harness with batch size 1."""
    sums: list[float] = []
    for item in items:
        context = tokenizer.encode(item.ctx).tolist()
        for ending in item.endings:
            end = tokenizer.encode(" " + ending).tolist()
            logits = model(torch.tensor([context + end[:-1]])).log_softmax(dim=-1)[0, -len(end) :]
            sums.append(float(logits.gather(1, torch.tensor(end)[:, None]).sum()))
    return sums


def figures(items: list[hellaswag.Item]) -> dict[str, Any]:
    """SmolLM2-135M-Instruct in the three protocols, and in lighteval's through its chat template."""
    from transformers import AutoTokenizer

    from raygpt.evaluate.foreign import load_foreign
    from tests.teacher_model import PACKAGE, fetch

    path = fetch()
    loaded = load_foreign(str(path))
    template = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)

    def chat(context: str) -> str:
        messages = [{"role": "user", "content": context}]
        return str(template.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    results = {}
    for name, protocol, wrap in (
        *((name, name, None) for name in hellaswag.PROTOCOLS),
        ("lighteval, chat template", "lighteval", chat),
    ):
        scorer = ModelScorer("SmolLM2", loaded.model, loaded.tokenizer, markup=wrap is not None)
        begin = time.process_time()
        asked = scorer.ask(hellaswag.questions(items, protocol, chat=wrap))
        seconds = time.process_time() - begin
        judged = [hellaswag.judge(item, protocol, scored) for item, scored in zip(items, asked)]
        results[name] = {
            **hellaswag.summarise(judged, bos=scorer.bos),
            "contexts_cut": scorer.cut,
            "cpu_seconds_per_item": seconds / len(items),
        }
        print(name, json.dumps(results[name]), flush=True)
    return {
        "model": f"{path.name} of {PACKAGE} (4-bit weights, computed in fp32)",
        "items": f"{len(items)} of the 5,000 of {ITEMS.name}, at equal distances",
        "protocols": results,
        "published": PUBLISHED,
    }


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("speed", "figures") or not sys.argv[2].isdigit():
        sys.exit(__doc__)
    main(sys.argv[1], int(sys.argv[2]))
