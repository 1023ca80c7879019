"""Machines that raygpt launched and that no cluster looks after any more: found by their tags, ended on request.

A worker is ended by its head's autoscaler and a head by `ray down`; one whose head is gone would be paid for until
somebody looks at the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.machines import Machine, machine, surplus
from raygpt.errors import UserError

MODULE = "raygpt.cluster.lambda_cloud.provider.LambdaNodeProvider"
UNSEEN_SECONDS = 3600.0  # a head that boots for so long does not come up
VERIFY_SECONDS = 120.0
ROW = "{:<34} {:<16} {:<7} {:<22} {:<14} {:>8} {:>9} {:>9}  {}"


def is_lambda(config: Mapping[str, Any]) -> bool:
    """Whether a cluster's file is one for Lambda."""
    provider = config.get("provider")
    return isinstance(provider, Mapping) and provider.get("module") == MODULE


def reasons(machines: Iterable[Machine], now: float) -> dict[str, str]:
    """id -> why nobody needs that machine, for those of which it is certain."""
    mine = [one for one in machines if one.cluster is not None and not one.ended]
    headed = {one.cluster for one in mine if one.kind == "head" and one.live}
    twice = {one.id for one in surplus(mine)}
    found = {}
    for one in mine:
        if one.status == "preempted":
            found[one.id] = "preempted"
        elif one.id in twice:
            found[one.id] = "launched twice"
        elif one.cluster not in headed:
            found[one.id] = "its cluster has no head"
        elif one.status == "booting" and (one.age(now) or 0) > UNSEEN_SECONDS:
            found[one.id] = "does not come up"
    return found


def end_machines(cloud: LambdaCloud, ids: list[str]) -> list[str]:
    """End them, and return those that are still listed as running after VERIFY_SECONDS."""
    cloud.terminate(ids)
    until = cloud.clock.time() + VERIFY_SECONDS
    while True:
        # another view than this client's own, which takes what it ended as ending
        left = [one.id for one in map(machine, cloud.instances(believing=False)) if one.id in ids and not one.ended]
        if not left or cloud.clock.time() > until:
            return left
        cloud.clock.sleep(5.0)


def orphans(file: str | None, *, end: bool, cloud: LambdaCloud | None = None) -> int:
    """Print the machines that raygpt launched with this key (of one cluster where its file is given), what each has
    cost so far, and which are orphans; `end` ends those. 0 when none is left."""
    config = read(file) if file else {}
    if file and not is_lambda(config):
        raise UserError(f"{file} is no cluster at Lambda: provider.module would be {MODULE}.")
    cloud = cloud or LambdaCloud.of(config.get("provider", {}))
    listed = [one for one in map(machine, cloud.instances()) if one.cluster is not None and not one.ended]
    shown = [one for one in listed if not file or one.cluster == config.get("cluster_name")]
    now = cloud.clock.time()
    why = reasons(shown, now)
    if not shown:
        print(f"no machine{' of ' + str(config['cluster_name']) if file else ''} at Lambda was launched by raygpt")
        return 0
    print(ROW.format("machine", "cluster", "kind", "type", "region", "age", "$/hour", "so far", ""))
    for one in sorted(shown, key=lambda m: (m.cluster or "", m.kind != "head", m.launched or 0)):
        age = one.age(now)
        cost = "?" if age is None else f"${one.price * age / 3600:.2f}"
        old = "?" if age is None else f"{age / 3600:.1f} h"
        told = f"orphan: {why[one.id]}" if one.id in why else f"in use ({one.status})"
        print(ROW.format(one.id, one.cluster or "", one.kind or "?", one.type, one.region, old, one.price, cost, told))
    price = sum(one.price for one in shown if one.id in why)
    if not why:
        print("no orphans: each of these clusters has its head; `ray down FILE` ends a cluster")
        return 0
    if not end:
        counted = f"{len(why)} orphan{'s' * (len(why) != 1)}"
        print(f"{counted} at ${price:.2f} an hour: raygpt cluster orphans {file + ' ' if file else ''}--end")
        return 1
    left = end_machines(cloud, list(why))
    if left:
        print(
            f"asked for, and still running after {VERIFY_SECONDS:.0f} s: {', '.join(left)}; end them in the dashboard"
        )
        return 1
    print(f"ended {len(why)} machine{'s' * (len(why) != 1)}, ${price:.2f} an hour; the list shows none of them running")
    return 0


def read(file: str) -> dict[str, Any]:
    """A cluster's file. Raises UserError for one that is none."""
    try:
        config = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file} cannot be read as a cluster's YAML ({type(error).__name__}): mend it.") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no cluster's YAML: see cluster/lambda-1xa10.yaml.")
    return config
