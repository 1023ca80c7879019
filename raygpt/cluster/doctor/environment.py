"""Is the software the same on every node: versions of Python and of every installed package, and raygpt's own sources.

A job that a node with another package joins fails in the middle, or trains on with other numbers.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import raygpt
from raygpt.cluster.doctor.finding import Finding, fail, ok
from raygpt.errors import UserError

NAMED = 5  # packages that a sentence lists
OWN = "raygpt's sources"


@dataclass(frozen=True)
class Environment:
    """What is installed: {package: version} with Python's and a digest of raygpt's sources among them."""

    packages: Mapping[str, str]

    @property
    def digest(self) -> str:
        """12 hex digits that are the same on every machine with the same packages, whatever their order."""
        text = "\n".join(f"{name}=={version}" for name, version in sorted(self.packages.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def summary(self) -> str:
        shown = ("python", "ray", "torch", "raygpt")
        listed = ", ".join(f"{name} {self.packages[name]}" for name in shown if name in self.packages)
        return f"{listed}; {len(self.packages)} packages, hash {self.digest}"


@lru_cache(maxsize=1)
def environment() -> Environment:
    """This process's; 0.2 s for 200 packages."""
    packages: dict[str, str] = {}
    for found in importlib.metadata.distributions():
        # what comes first on the path is what is imported
        packages.setdefault((found.metadata["Name"] or "?").lower().replace("_", "-"), found.version)
    # code that a job brings along is not installed
    packages |= {"raygpt": raygpt.__version__, "python": platform.python_version(), OWN: _own_sources()}
    return Environment(packages)


def _own_sources() -> str:
    """Digest of raygpt's modules as this process imports them."""
    folder, digest = Path(raygpt.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def differences(here: Environment, there: Environment) -> list[str]:
    """`torch 2.13.0 and not 2.12.1`, `no wandb (0.18.0)`, … of another machine, seen from here; by name."""
    found = []
    for name in sorted({*here.packages, *there.packages}):
        mine, other = here.packages.get(name), there.packages.get(name)
        if mine == other:
            continue
        if other is None:
            found.append(f"no {name} ({mine} here)")
        elif mine is None:
            found.append(f"{name} {other} (not here)")
        else:
            found.append(f"{name} {other} ({mine} here)")
    return found


def listed(differing: list[str]) -> str:
    more = len(differing) - NAMED
    return ", ".join(differing[:NAMED]) + (f" and {more} more" if more > 0 else "")


FIX = "install the same constraints.txt on every node (setup_commands of the cluster's file), or one image for all"


def compare(here: Environment, there: Mapping[str, Environment]) -> Finding:
    """One finding over the nodes, {name: its environment}."""
    other = {node: differences(here, each) for node, each in there.items() if each.digest != here.digest}
    if not other:
        return ok("environment", here.summary())
    node, differing = next(iter(sorted(other.items())))
    more = f"; so do {len(other) - 1} other nodes" if len(other) > 1 else ""
    return fail("environment", f"{node} differs from this machine: {listed(differing)}{more}", FIX)


def check_environment(mode: str, say: Callable[[str], None]) -> None:
    """At the start of a run on a joined cluster: every node has what the driver has. `mode` is refuse, warn or off.

    Raises UserError, naming node and packages, where one differs and the mode is refuse. Asks nobody on a cluster of
    one node, where the workers import what the driver does.
    """
    from raygpt.cluster.doctor.nodes import node_names, on_every_node

    if mode == "off" or len(node_names()) < 2:
        return
    answers = on_every_node(environment)
    silent = [node for node, answer in answers.items() if not isinstance(answer, Environment)]
    if silent:
        say(f"Environment: {listed(silent)} did not answer and was not compared")
    here = environment()
    found = compare(here, {node: each for node, each in answers.items() if isinstance(each, Environment)})
    if found.status == "ok":
        say(f"Environment: the same on {len(answers) - len(silent)} nodes, hash {here.digest}")
    elif mode == "refuse":
        raise UserError(f"node {found.text}: {found.fix}, or set scale.check_environment=warn.")
    else:
        say(f"Warning: node {found.text}")
