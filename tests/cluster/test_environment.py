"""The same software everywhere: what is compared, and what is said of a node that differs."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
import ray
import torch

from raygpt.cluster.doctor import nodes
from raygpt.cluster.doctor.environment import OWN, Environment, check_environment, compare, differences, environment
from raygpt.errors import UserError

BASE = {"python": "3.11.7", "ray": "2.60.0", "torch": "2.13.0", "raygpt": "0.1.0", "numpy": "2.4.1", OWN: "aa"}


def test_it_is_what_this_process_imports() -> None:
    here = environment()
    assert here.packages["ray"] == ray.__version__ and here.packages["torch"] == torch.__version__
    code = "from raygpt.cluster.doctor.environment import environment; print(environment().digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert other.stdout.strip() == here.digest  # of another process too: nothing in it hangs on hash seeds or order
    items = list(here.packages.items())
    random.Random(1).shuffle(items)
    assert Environment(dict(items)).digest == here.digest


def test_packages_that_differ_are_named() -> None:
    there = Environment({**BASE, "torch": "2.12.1", "awscli": "1.2"})
    there = Environment({name: version for name, version in there.packages.items() if name != "numpy"})
    assert differences(Environment(BASE), there) == [
        "awscli 1.2 (not here)", "no numpy (2.4.1 here)", "torch 2.12.1 (2.13.0 here)",
    ]  # fmt: skip
    found = compare(Environment(BASE), {"a": Environment(BASE), "b": there})
    assert found.status == "fail" and found.text.startswith("b differs from this machine: awscli 1.2 (not here)")
    assert compare(Environment(BASE), {"a": Environment(dict(BASE))}).status == "ok"
    # another checkout of raygpt itself is another program
    assert differences(Environment(BASE), Environment({**BASE, OWN: "bb"})) == [f"{OWN} bb (aa here)"]


def test_a_run_refuses_a_node_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment()
    other = Environment({**here.packages, "torch": "1.0"})
    said: list[str] = []
    monkeypatch.setattr(nodes, "node_names", lambda: {"1": "head", "2": "worker"})
    monkeypatch.setattr(nodes, "on_every_node", lambda _: {"head": here, "worker": other})
    with pytest.raises(UserError, match=r"^node worker differs from this machine: torch 1.0 \(2.* here\): install"):
        check_environment("refuse", said.append)
    check_environment("warn", said.append)
    check_environment("off", said.append)
    assert len(said) == 1 and said[0].startswith("Warning: node worker differs")
    monkeypatch.setattr(nodes, "on_every_node", lambda _: {"head": here, "worker": TimeoutError()})
    check_environment("refuse", said.append)
    assert said[1:] == [
        "Environment: worker did not answer and was not compared",
        f"Environment: the same on 1 nodes, hash {here.digest}",
    ]
    monkeypatch.setattr(nodes, "node_names", lambda: {"1": "head"})
    monkeypatch.setattr(nodes, "on_every_node", lambda _: pytest.fail("a single node is asked"))
    check_environment("refuse", said.append)
