"""`raygpt finetune`: an existing GPT-2 and one's own documents, on pretrain's machinery with finetune.yaml's defaults.

With task.name set it trains a classifier instead, as the best.yaml of a sweep asks for.
"""

from __future__ import annotations

import shlex

from raygpt.cli import Call
from raygpt.config import Config
from raygpt.jobs import pretrain


def run(config: Config, call: Call) -> int:
    if config.task.name:
        from raygpt.jobs.tune import finetune_task

        return finetune_task(config, call.command)
    status = pretrain.run(config, call)
    if status == 0 and not call.flags & {"dry_run", "print_deepspeed"}:
        place = [f"--run.name={config.run.name}", f"--run.storage={config.run.storage}"]
        pair = [f"--base={config.model.init_from}", f"--tuned={config.run.name}", place[1]]
        print(f"What it bought: {shlex.join(['raygpt', 'evaluate', *pair])}")
        print(f"Hugging Face folder: {shlex.join(['raygpt', 'export', *place])}", flush=True)
    return status
