"""cluster/lambda-*.yaml: what Ray takes, this project's versions and prices, and what `raygpt cluster check` says."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from raygpt import prices
from raygpt.cluster.lambda_cloud import orphans
from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.check import problems
from raygpt.cluster.lambda_cloud.pacing import Pacing
from raygpt.errors import UserError
from tests.cluster.lambda_server import KEY, TYPES, Clock, Cloud

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = sorted((ROOT / "cluster").glob("lambda-*.yaml"))
PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@laptop"


@pytest.fixture(autouse=True)
def laptop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with the keys that the files name."""
    home = tmp_path / "home"
    for name, text in (
        (".config/raygpt/lambda/key", KEY),
        (".ssh/id_ed25519", "private"),
        (".ssh/id_ed25519.pub", PUBLIC),
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)
        (home / name).chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    return home


def pinned(package: str) -> str:
    text = (ROOT / "constraints.txt").read_text()
    return re.search(rf"^{package}==(\S+)$", text, re.MULTILINE)[1]  # type: ignore[index]


def checked(config: dict[str, Any], folder: Path, cloud: Cloud | None = None, key: str = KEY) -> list[str]:
    cloud = cloud or Cloud(Clock())
    api = LambdaCloud(
        "x", key, pacing=Pacing(folder / "pace", clock=cloud.clock), clock=cloud.clock,
        send=lambda method, path, body: cloud.send(method, path, body, key),
    )  # fmt: skip
    return problems(config, api)


def read(name: str = "lambda-8xa100.yaml") -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "cluster" / name).read_text()))


def test_there_is_a_file_for_each_kind_of_machine() -> None:
    assert [file.stem for file in FILES] == ["lambda-1xa10", "lambda-8xa100", "lambda-8xh100", "lambda-8xv100"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_is_what_ray_takes_and_nothing_stands_against_it(file: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(file.read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(config)
    assert checked(config, tmp_path) == []
    assert config["available_node_types"]["head"]["max_workers"] == 0 and config["idle_timeout_minutes"] <= 15
    assert config["max_workers"] == config["available_node_types"]["worker"]["max_workers"]
    head, worker = (" ".join(config[f"{kind}_start_ray_commands"]) for kind in ("head", "worker"))
    assert "--dashboard-host=127.0.0.1" in head and "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    assert "watchdog" in head
    setup = " ".join(config["setup_commands"])
    assert "RAY_AUTH_MODE=token" in setup and "~/.ray/auth_token" in config["file_mounts"]
    # the API key opens the whole account: on the head, and on no worker
    key = config["provider"]["key_file"]
    assert key in config["file_mounts"] and any(f"rm -f {key}" in line for line in config["worker_setup_commands"])
    for kind, command in (("head", head), ("worker", worker)):
        machine = prices.machine(config["available_node_types"][kind]["node_config"]["instance_type"])
        assert machine.cloud == "lambda" and machine.name in TYPES
        resources = config["available_node_types"][kind]["resources"]
        assert resources["CPU"] == machine.cpus and resources.get("GPU", 0) == machine.gpus
        labels = config["available_node_types"][kind]["labels"]
        assert labels == {"raygpt.io/instance-type": machine.name, "raygpt.io/market": "on-demand"}
        store = int(re.search(r"--object-store-memory=(\d+)", command)[1])  # type: ignore[index]
        assert store <= 0.2 * machine.memory


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_agrees_with_the_pinned_versions_and_the_dated_prices(file: Path) -> None:
    text = file.read_text()
    config = yaml.safe_load(text)
    setup = " ".join(config["setup_commands"])
    assert f'"ray[default]=={pinned("ray")}"' in setup and f'"torch=={pinned("torch")}"' in setup
    assert "-c ~/raygpt/constraints.txt" in setup and "--python 3.11" in setup
    header = text.split("cluster_name:")[0]
    for node in config["available_node_types"].values():
        machine = prices.machine(node["node_config"]["instance_type"])
        assert f"{machine.name}: ${machine.price:.2f} an hour, read {machine.read}" in header
        # CUDA 12.6 is the last build with the V100's sm_70
        assert (machine.gpu or "").startswith("V100") <= ("--torch-backend cu126" in setup)
    for word in ("launches", "price", "limits", "start", "submit", "end"):
        assert re.search(rf"^#   {word} ", header, re.MULTILINE), f"no {word}"
    for name in re.findall(r"(?:cluster/|--config )(\S+\.yaml)", header):
        assert name == file.name or (ROOT / name).is_file() or (ROOT / "cluster" / name).is_file()


def change(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    at = config
    for name in parents:
        at = at[name]
    if value is None:
        del at[last]
    else:
        at[last] = value
    return config


WORKER, HEAD = "available_node_types.worker.node_config.instance_type", "available_node_types.head"


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("cluster_name", "My Cluster", "cluster_name=My Cluster is no name"),
        ("setup_commands", None, "the file has no setup_commands: Ray gives an external provider no defaults"),
        (WORKER, "gpu_9x_b300", "Lambda has no type of machine named gpu_9x_b300: it has cpu_4x_general"),
        (WORKER, "", "worker has no node_config.instance_type: name one"),
        (f"{HEAD}.max_workers", 2, "head.max_workers is not 0"),
        ("head_node_type", "boss", "head_node_type=boss is not one of available_node_types (head, worker)"),
        ("provider.regions", ["us-west-9"], "is free in provider.regions=us-west-9, but there is in us-east-1"),
        ("provider.region", "us-west-1", "provider has no region: it takes"),
        ("provider.ssh_key_name", "gone", "provider.ssh_key_name=gone is not registered at Lambda (laptop)"),
        ("provider.ssh_from", ["everybody"], "provider.ssh_from is a list of networks such as 203.0.113.7/32"),
        ("provider.key_file", "~/nothing", "nothing does not exist: the head launches workers with it"),
        ("auth.ssh_private_key", "~/.ssh/none", "none does not exist: ssh-keygen makes one"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_way_out(path: str, value: Any, sentence: str, tmp_path: Path) -> None:
    found = checked(change(read(), path, value), tmp_path)
    assert any(sentence in one for one in found), found
    assert all("\n" not in one and one.endswith(".") for one in found)


def test_all_mistakes_are_told_at_once(tmp_path: Path, laptop: Path) -> None:
    (laptop / ".ssh" / "id_ed25519.pub").unlink()
    (laptop / ".config/raygpt/lambda/key").chmod(0o644)
    config = change(change(read(), WORKER, "gpu_9x"), "cluster_name", "A B")
    assert len(checked(config, tmp_path)) >= 4


def test_a_key_that_is_wrong_or_without_rights_is_one_sentence(tmp_path: Path) -> None:
    (only,) = checked(read(), tmp_path, key="wrong")
    assert "global/invalid-api-key" in only and "make a key at cloud.lambda.ai/api-keys" in only
    cloud = Cloud(Clock())
    refusal = {"error": {"code": "global/forbidden", "message": "no rights", "suggestion": ""}}
    cloud._answer = lambda *_: (403, refusal)  # type: ignore[method-assign]
    (only,) = checked(read(), tmp_path, cloud)
    assert only.endswith("use a key that may manage instances.")


def test_a_type_that_is_free_nowhere_is_told_before_anything_is_launched(tmp_path: Path) -> None:
    cloud = Cloud(Clock(), capacity={})
    assert any("no region has a gpu_8x_a100 free now" in one for one in checked(read(), tmp_path, cloud))
    assert cloud.launches == 0 and all(method == "GET" for _, method, _ in cloud.requests)


def test_another_s_cluster_of_that_name_is_not_taken_over(tmp_path: Path) -> None:
    cloud = Cloud(Clock())
    config = read()
    tags = {"raygpt-cluster": config["cluster_name"], "ray-node-type": "head", "raygpt-owner": "eve@elsewhere"}
    body = {"region_name": "us-east-1", "instance_type_name": "gpu_1x_a10", "ssh_key_names": ["laptop"]}
    cloud.send(
        "POST", "/api/v1/instance-operations/launch",
        {**body, "tags": [{"key": key, "value": value} for key, value in tags.items()]},
    )  # fmt: skip
    cloud.clock.sleep(20)
    found = checked(config, tmp_path, cloud)
    assert found == [
        "cluster_name=raygpt-8xa100 is in use by eve@elsewhere, and `ray up` would take that cluster over: choose "
        "another name."
    ]
    assert cloud.violations == []


def test_orphans_of_a_file_that_is_none_of_lambda_s_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("provider: {type: aws}\n")
    with pytest.raises(UserError, match="is no cluster at Lambda"):
        orphans.orphans(str(tmp_path / "a.yaml"), end=False)
    (tmp_path / "b.yaml").write_text("a: [")
    with pytest.raises(UserError, match="cannot be read as a cluster's YAML"):
        orphans.orphans(str(tmp_path / "b.yaml"), end=False)
