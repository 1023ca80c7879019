"""`raygpt cluster check`: everything that can be known of a cluster file before it costs anything."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from raygpt.cluster.findings import Findings
from raygpt.errors import UserError, one_line

# ray==2.60.0, "ray[default]==2.60.0", rayVersion: 2.60.0
PINNED = re.compile(r"\b(?:(ray|torch|raygpt)(?:\[[\w,]+\])?==|(rayVersion): *\"?)(\d[\w.+]*)")


def check(path: str) -> int:
    """Print what is well; the exit status is 0. Raises UserError with every problem, each with its way out."""
    config = read(path)
    found = Findings()
    _versions(path, found)
    if config.get("kind") == "RayJob":
        from raygpt.cluster.rayjob import inspect as inspect_rayjob

        _add(found, inspect_rayjob(config))
    else:
        prepared = prepared_config(config, path)
        found.verified.append("Ray takes the file")
        _mounts(prepared, found)
        _provider(prepared, path, found)
    for sentence in found.verified:
        print(f"  ok   {sentence}")
    for sentence in found.unknown:
        print(f"  ?    {sentence}")
    if found.problems:
        sys.stdout.flush()
        raise UserError("\n".join(found.problems))
    print(f"{path} is fit to start")
    return 0


def prepare(path: str) -> int:
    """Make what the file names and Ray does not: `raygpt cluster prepare`."""
    config = prepared_config(read(path), path)
    if config["provider"]["type"] != "aws":
        print(f"{path}: nothing to prepare, {config['provider']['type']} needs no more than the file")
        return 0
    from raygpt.cluster.aws.prepare import prepare

    prepare(config)
    return 0


def read(path: str) -> dict[str, Any]:
    """The file as it is. Raises UserError where it is no YAML mapping."""
    import yaml

    try:
        config = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): name a cluster file.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML ({one_line(error)}): mend that place.") from error
    if not isinstance(config, dict) or not ("provider" in config or config.get("kind") == "RayJob"):
        raise UserError(f"{path} is no cluster file: it has neither provider nor kind: RayJob.")
    return config


def prepared_config(config: dict[str, Any], path: str) -> dict[str, Any]:
    """With Ray's defaults, and held against its schema. Raises UserError naming the key that does not fit."""
    import contextlib
    import io
    import logging

    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.disable(logging.WARNING)
    try:
        # it prints a warning for every mounted file, which only matters to containers
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            prepared = prepare_config(config)
        validate_config(prepared)
    except Exception as error:  # jsonschema's, click's, KeyErrors of a missing section: whatever Ray raises
        where = ".".join(str(part) for part in getattr(error, "absolute_path", []))
        reason = one_line(Exception(getattr(error, "message", None) or error), 200)
        at = f", at {where}" if where else ""
        raise UserError(f"Ray does not take {path}{at} ({reason}): mend it there.") from error
    finally:
        logging.disable(logging.NOTSET)
    return prepared


def _versions(path: str, found: Findings) -> None:
    """Versions written in the file are those of constraints.txt beside it, else those installed here."""
    checkout = Path(path).resolve().parent.parent / "constraints.txt"
    pins: dict[str, str] = {}
    if checkout.is_file():
        lines = (line.partition("==") for line in checkout.read_text().splitlines() if not line.startswith("#"))
        pins = {name: pinned for name, _, pinned in lines}
    source = "constraints.txt has" if pins else "installed here is"
    said = set()
    for name, ray_version, written in PINNED.findall(Path(path).read_text()):
        package = name or ("ray" if ray_version else "")
        try:
            expected = pins.get(package) or version(package)
        except PackageNotFoundError:
            continue
        said.add(f"{package} {written}")
        if written.partition("+")[0] != expected.partition("+")[0]:
            found.problems.append(
                f"{path} installs {package} {written} and {source} {expected}: write {expected}, nodes and laptop have "
                "to agree."
            )
    if said and not found.problems:
        found.verified.append(f"versions agree: {', '.join(sorted(said))}")


def _mounts(config: dict[str, Any], found: Findings) -> None:
    for remote, local in config.get("file_mounts", {}).items():
        if Path(local).expanduser().exists():
            continue
        token = local.endswith("auth_token")
        way = "run `ray get-auth-token --generate`" if token else "call from the checkout's folder"
        found.problems.append(f"file_mounts: {local}, for {remote}, is not here: {way}.")


def _provider(config: dict[str, Any], path: str, found: Findings) -> None:
    kind, module = config["provider"]["type"], str(config["provider"].get("module", ""))
    if kind == "aws":
        from raygpt.cluster.aws.check import inspect as inspect_aws

        try:
            _add(found, inspect_aws(config, path))
        except UserError as error:
            found.problems.append(str(error))
    elif kind == "external" and module.startswith("raygpt.cluster.lambda_cloud"):
        from raygpt.cluster.lambda_cloud.check import problems

        here = problems(config)
        found.problems.extend(here)
        if not here:
            found.verified.append("Lambda takes the key, the machine types and the SSH key")


def _add(found: Findings, more: Findings) -> None:
    found.verified += more.verified
    found.unknown += more.unknown
    found.problems += more.problems
