"""The table of machines and prices: what it must hold of every entry, and how a user's own file changes it."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from raygpt import prices
from raygpt.errors import UserError
from raygpt.hardware import spec_named
from raygpt.prices import MACHINES, machine, machines


def test_every_price_has_a_day_and_a_source_and_every_gpu_is_in_the_table_of_gpus() -> None:
    assert len({entry.name for entry in MACHINES}) == len(MACHINES)
    for entry in MACHINES:
        assert entry.price is not None and entry.price > 0 and entry.cpus > 0 and entry.memory > 0, entry.name
        assert datetime.date(2020, 1, 1) < datetime.date.fromisoformat(entry.read), entry.name
        assert entry.source, entry.name
        assert (entry.gpus > 0) == (entry.gpu is not None), entry.name
        assert entry.gpu is None or spec_named(entry.gpu) is not None, entry.name
        assert entry.spot is None or entry.spot < entry.price, entry.name


def test_aws_machines_are_what_the_cloud_says() -> None:
    import gzip

    import moto

    file = Path(moto.__file__).parent / "ec2/resources/instance_types.json.gz"
    known = json.loads(gzip.decompress(file.read_bytes()))
    for entry in MACHINES:
        if entry.cloud == "aws" and not entry.retired:
            facts = known[entry.name]
            assert entry.cpus == facts["VCpuInfo"]["DefaultVCpus"], entry.name
            assert entry.memory == facts["MemoryInfo"]["SizeInMiB"] * 2**20, entry.name
            assert entry.gpus == sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", [])), entry.name


def test_a_file_of_ones_own_overrides_and_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prices.yaml"
    file.write_text(
        "p4d.24xlarge: 20.5\np5.48xlarge: {spot: 21, read: 2026-11-27}\n"
        "rack: {price: 1.25, cpus: 64, memory_gib: 512, gpus: 4, gpu: A100 80GB}\n"
    )
    monkeypatch.setenv("RAYGPT_PRICES", str(file))
    assert machine("p4d.24xlarge").price == 20.5 and machine("p4d.24xlarge").gpus == 8
    assert machine("p4d.24xlarge").source == str(file) and machine("p4d.24xlarge").read == ""
    assert (machine("p5.48xlarge").price, machine("p5.48xlarge").spot) == (55.04, 21)
    assert machine("p5.48xlarge").read == "2026-11-27"
    rack = machine("rack")
    assert (rack.price, rack.cpus, rack.memory, rack.gpus, rack.cloud) == (1.25, 64, 512 * 2**30, 4, "other")
    assert machine("rack").hourly("spot") == 1.25, "no spot price is known"
    file = tmp_path / "prices.json"
    file.write_text('{"g5.xlarge": {"price": 2}}')
    monkeypatch.setenv("RAYGPT_PRICES", str(file))
    assert machine("g5.xlarge").price == 2 and "rack" not in machines()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("p4d.24xlarge: much", r"RAYGPT_PRICES: p4d\.24xlarge\.price=much must be a number, 0 or more\."),
        ("p4d.24xlarge: {price: -1}", r"price=-1 must be a number"),
        ("p4d.24xlarge: {cost: 1}", r"p4d\.24xlarge\.cost is no fact of a machine: write price, spot"),
        ("- 1", r"must hold machine types with their prices"),
        ("{", r"cannot be read .*: name a YAML or JSON file\."),
    ],
)
def test_a_wrong_file_is_one_sentence(
    text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p.yaml").write_text(text)
    monkeypatch.setenv("RAYGPT_PRICES", str(tmp_path / "p.yaml"))
    with pytest.raises(UserError, match=sentence):
        machines()


def test_a_machine_that_nobody_knows_is_one_sentence_with_the_closest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYGPT_PRICES", raising=False)
    with pytest.raises(
        UserError, match=r"^no price is known of machine type p4d\.24xlrge \(.*p4d\.24xlarge\): name it"
    ):
        machine("p4d.24xlrge")
    monkeypatch.setenv("RAYGPT_PRICES", "/nowhere/prices.yaml")
    with pytest.raises(UserError, match="RAYGPT_PRICES=/nowhere/prices.yaml cannot be read"):
        machine("p4d.24xlarge")


def test_the_file_is_named_by_a_variable_that_is_no_setting() -> None:
    from raygpt.config.settings import load_config

    load_config("plan", None, {}, {prices.VARIABLE: "prices.yaml"})
    with pytest.raises(UserError, match="RAYGPT_PRICE names no setting"):
        load_config("plan", None, {}, {"RAYGPT_PRICE": "prices.yaml"})
