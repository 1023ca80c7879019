"""`raygpt finetune`: train an existing GPT-2 on one's own documents; pretrain's machinery, finetune.yaml's defaults."""

from __future__ import annotations

import shlex

from raygpt.cli import Call
from raygpt.config import Config
from raygpt.jobs import pretrain


def run(config: Config, call: Call) -> int:
    status = pretrain.run(config, call)
    if status == 0 and not call.flags & {"dry_run", "print_deepspeed"}:
        place = [f"--run.name={config.run.name}", f"--run.storage={config.run.storage}"]
        pair = [f"--base={config.model.init_from}", f"--tuned={config.run.name}", place[1]]
        print(f"What it bought: {shlex.join(['raygpt', 'evaluate', *pair])}")
        print(f"Hugging Face folder: {shlex.join(['raygpt', 'export', *place])}", flush=True)
    return status
