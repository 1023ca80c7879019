"""Training by real workers without Ray Train: gloo ranks of this machine, forked from one warm process.

A run under Ray Train takes seven to eleven seconds to start, most of them imports in new processes and Ray's own
hand-shakes. What a test says about strategies, precision, checkpoints or the loop does not need them. Here a process
that has imported everything waits, forks itself once per rank and run, and each rank calls the very `train_worker` that
Ray Train would have called; so no run sees anything that an earlier one left behind. In place of Ray stand only its
device, its `report` (the snapshot is stored in a thread, as Ray does) and the mailbox to the driver (a pipe).

The driver is `run_training` with `_train` alone replaced. Data come through the memory map.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any, BinaryIO
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


class GlooPool:
    """The warm process; `train` stands for Ray Train's part of a run."""

    def __init__(self) -> None:
        # deepspeed looks for an accelerator where it is imported
        env = {**os.environ, "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.train.gloo_pool"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
        )

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def run_training(self, *arguments: Any) -> Any:
        """`raygpt.train.trainer.run_training` on ranks of this pool."""
        from raygpt.train import trainer

        with patch.object(trainer, "_train", self.train):
            return trainer.run_training(*arguments)

    def train(self, run: Any, job: Any, progress: Any, *more: Any) -> dict[str, Any]:
        """Train the job on scale.num_workers ranks; what the last event says about the end."""
        from raygpt.train import trainer

        with patch.object(trainer, "LeanTorchTrainer", lambda _, train_loop_config, **__: train_loop_config):
            with patch.object(trainer, "wants_gpu", lambda _: False):
                assignment = trainer._trainer(run.config, job, run.lock, None, "", *more)
        assert self.process.stdin is not None and self.process.stdout is not None
        wish = Path(tempfile.mkdtemp()) / "stop"  # a file where the driver wishes that the ranks stop
        run.stop.listen(wish.touch)
        pickle.dump((run.config.scale.worker_range[1], dict(os.environ), assignment, wish), self.process.stdin)
        self.process.stdin.flush()
        end = {}
        while (event := pickle.load(self.process.stdout))[0] != "done":
            if event[0] == "failed":
                failure = event[1]
                while event[0] != "done":
                    event = pickle.load(self.process.stdout)
                raise RuntimeError(failure)
            end = trainer._show([event], progress, run) or end
        assert end, "training ended without saying how"
        return end


class Wire:
    """`ControlLink` with a pipe to the driver in place of an actor, and a file for its wish to stop."""

    def __init__(self, pipe: BinaryIO, wish: Path) -> None:
        self.pipe, self.wish = pipe, wish
        self.started = False

    def send(self, kind: str, value: Any) -> None:
        self.started = self.started or kind == "start"
        pickle.dump((kind, value), self.pipe)
        self.pipe.flush()

    def stop_requested(self) -> bool:
        return self.wish.exists()

    def cost_usd(self) -> float | None:
        return None

    def close(self) -> None:
        pass


def serve(jobs: BinaryIO, events: BinaryIO) -> None:
    """Fork and wait, job after job, until the pipe of jobs is closed."""
    import deepspeed
    import ray.train.torch
    import torch

    from raygpt.train import worker

    assert deepspeed and torch.get_num_threads() == 1 and threading.active_count() == 1, "not fit for forking"
    while True:
        try:
            size, environment, assignment, wish = pickle.load(jobs)
        except EOFError:
            return
        with tempfile.TemporaryDirectory() as meeting:
            ranks = {}
            for rank in range(size):
                pid = os.fork()
                if pid == 0:
                    status = 1
                    try:
                        os.environ.update(environment)
                        for name in environment.get("POOL_IMPORTS", "").split():  # what a test adds to a registry
                            importlib.import_module(name)
                        rank_main(worker, ray.train, events, rank, size, Path(meeting) / "store", assignment, wish)
                        status = 0
                    except BaseException:
                        pickle.dump(("failed", f"rank {rank}: {traceback.format_exc()}"), events)
                        events.flush()
                    finally:
                        os._exit(status)
                ranks[pid] = rank
            while ranks:
                pid, status = os.wait()
                del ranks[pid]
                if status:
                    for other in ranks:  # it would wait for its peer
                        os.kill(other, 9)
        pickle.dump(("done", None), events)
        events.flush()


def rank_main(
    worker: Any, ray_train: Any, events: BinaryIO, rank: int, size: int, meeting: Path, assignment: Any, wish: Path
) -> None:
    """One rank's whole life."""
    import torch

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size))
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=size)
    stores: list[threading.Thread] = []

    def report(_: dict, *, checkpoint: Any, checkpoint_dir_name: str, checkpoint_upload_fn: Any, **__: Any) -> None:
        stores.append(threading.Thread(target=checkpoint_upload_fn, args=(checkpoint, checkpoint_dir_name)))
        stores[-1].start()

    ray_train.report = report
    ray_train.torch.get_device = lambda: torch.device("cpu")
    worker.ControlLink = lambda *_: Wire(events, wish)
    worker.train_worker(assignment)
    for thread in stores:
        thread.join()


if __name__ == "__main__":
    # the pipes are for pickles alone: whatever is printed goes to the error stream
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, pipe)
