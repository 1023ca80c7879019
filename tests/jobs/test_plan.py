"""`raygpt plan`: figures, verdict and way out, as a person and a script read them."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from raygpt.capacity.fit import Hardware
from raygpt.capacity.forecast import deepspeed_estimate, states
from raygpt.capacity.from_config import forecast_run
from raygpt.capacity.machine import free_disk, probe
from raygpt.capacity.memory import Setup, needs
from raygpt.cli import main
from raygpt.config import Config
from raygpt.config.settings import load_config
from raygpt.errors import UserError
from raygpt.jobs.plan import planned_model
from raygpt.model.export import export_huggingface
from raygpt.model.gpt import GPT, GPTConfig

XL = ["--model.init_from=gpt2-xl", "--data.seq_len=1024", "--train.global_batch_tokens=16384", "--plan.disk_gb=500"]
V100 = ["--plan.gpu=V100", "--plan.host_memory_gb=61"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def plan(*options: str) -> int:
    return main(["plan", *options])


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_run_that_fits_is_described_and_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    offload = ["--train.strategy=zero3", "--train.offload=all", "--train.activation_checkpointing=true"]
    assert plan(*XL, *V100, *offload, "--train.micro_batch_size=8") == 0
    text = capsys.readouterr().out
    assert "Model of 1,557,611,200 parameters, zero3, offload all, fp16, 1 worker, 8 x 1024 tokens per pass" in text
    assert "Each GPU (V100, 16.0 GB), most " in text and "Each host (61.0 GB, 1 worker), most " in text
    assert "2 newest checkpoints, the best and the one being written, 18.7 GB each" in text
    assert "DeepSpeed's estimator: 0.3 and 39.2" in text and "It fits." in text
    found = json.loads(text.splitlines()[-1])
    assert found["fits"] and found["refusal"] is None and found["settings"] == {}
    assert found["device_bytes"] < 16e9 and 35e9 < found["host_bytes"] < 61e9
    assert sum(found["parts"]["host"].values()) == found["host_bytes"]


def test_a_run_that_does_not_fit_is_refused_with_settings_that_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*XL, *V100, "--train.micro_batch_size=4") == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("raygpt: train.strategy=ddp with 4 rows per pass needs ")
    assert " on each GPU but V100 has 16.0 GB: set train.strategy=zero" in streams.err and streams.err.count("\n") == 1
    added = streams.out.split("Add: ")[1].split("   (")[0].split()
    assert any(option.startswith("--train.offload=") for option in added)
    settings = json.loads(streams.out.splitlines()[-1])["settings"]
    assert [f"--{key}={str(value).lower()}" for key, value in settings.items()] == added
    assert plan(*XL, *V100, "--train.micro_batch_size=4", *added) == 0  # as one would paste it


def test_where_nothing_fits_the_least_that_would_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*XL, "--plan.gpu=V100", "--plan.host_memory_gb=20") == 2
    error = capsys.readouterr().err
    assert "even everything in host memory and one row at a time takes" in error and "of host memory" in error
    assert "raise scale.num_workers, choose a smaller model" in error
    assert plan(*XL, "--plan.gpu=cpu", "--plan.host_memory_gb=16") == 2
    assert "of host memory but the machine has 16.0 GB" in capsys.readouterr().err


def test_the_disk_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = ["--plan.gpu=H100", "--plan.host_memory_gb=200"]
    assert plan(*XL, *gpu, "--plan.disk_gb=60") == 2
    error = capsys.readouterr().err
    assert "train.keep_checkpoints=2 needs 74.8 GB of disk" in error and "set train.keep_checkpoints=1." in error
    assert plan(*XL, *gpu, "--plan.disk_gb=60", "--train.keep_checkpoints=1") == 0
    capsys.readouterr()
    assert plan(*XL, *gpu, "--plan.disk_gb=30", "--train.keep_checkpoints=1") == 2
    assert "set run.storage to a larger disk" in capsys.readouterr().err


def test_a_micro_batch_left_to_the_plan_is_the_largest_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    rows = []
    for memory in (14, 16, 40):
        assert plan(*XL, *V100, f"--plan.gpu_memory_gb={memory}", "--train.strategy=zero2", "--train.offload=optimizer",
                    "--train.activation_checkpointing=true") == 0  # fmt: skip
        rows.append(figures(capsys)["micro_batch_size"])
    assert rows == sorted(rows) and rows[0] < rows[-1] == 16


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--plan.gpu=Voodoo2"], "plan.gpu=Voodoo2 is not in the table of GPUs: set plan.gpu_memory_gb too"),
        (["--plan.gpu=V100", "--train.precision=bf16"], "train.precision=bf16 is not supported by V100: use fp16"),
        (["--train.offload=optimizer"], "needs DeepSpeed: set train.strategy"),
        (["--model.init_from=./nowhere/model"], "is not a folder"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan(*XL, *options) == 2
    assert sentence in capsys.readouterr().err


def test_shapes_are_known_without_data_or_network(tmp_path: Path) -> None:
    def model(**options: str) -> GPTConfig:
        return planned_model(load_config("plan", None, {key.replace("__", "."): v for key, v in options.items()}, {}))

    assert model(model__init_from="openai-community/gpt2-large").num_parameters() == 774_030_080
    assert model(model__init_from="gpt2", model__seq_len="256").seq_len == 256
    assert model(model__preset="nano").vocab_size == 50257
    assert model(model__preset="nano", data__tokenizer="bytes").vocab_size == 257
    assert model(model__preset="gpt2", data__tokenizer="train:4096", model__n_layer="3").n_layer == 3
    assert model(model__preset="nano", model__dropout="0.1").dropout == 0.1, "its masks take memory"
    shape = GPTConfig(vocab_size=300, seq_len=32, n_layer=2, n_head=2, n_embd=16)
    folder = export_huggingface(GPT(shape), tmp_path / "hf", tokenizer_json=None, eot_id=0)
    assert model(model__init_from=str(folder)) == shape


def test_the_machine_is_measured_where_the_plan_says_nothing(tmp_path: Path) -> None:
    from raygpt.storage import locate

    here = probe(locate(tmp_path / "not" / "yet" / "there"), use_gpu=False)
    assert here.gpu is None and here.disk is not None and here.disk > 0
    with open("/proc/meminfo") as file:
        assert 0 < here.host_memory <= int(file.readline().split()[1]) * 1024
    config: Config = load_config("plan", None, {"model.preset": "nano", "train.global_batch_tokens": "1024"}, {})
    report = forecast_run(config, planned_model(config), here)
    assert report.fits and report.refusal is None and report.setup.gpu is False
    tight = forecast_run(config, planned_model(config), Hardware(host_memory=10**9))
    assert tight.refusal is not None and "the machine has 1.0 GB" in tight.refusal


def test_checkpoints_that_are_there_take_no_room_from_their_own_run(tmp_path: Path) -> None:
    from raygpt.storage import locate

    step = tmp_path / "run" / "checkpoints" / "step_00000010"
    step.mkdir(parents=True)
    before = free_disk(locate(tmp_path / "run"))
    with open(step / "model.safetensors", "wb") as file:
        file.truncate(10**12)  # all of it holes: no room is taken
    assert free_disk(locate(tmp_path / "run")) == pytest.approx(before + 10**12, abs=10**11)


@pytest.mark.parametrize(
    ("strategy", "offload", "workers"),
    [
        ("zero2", "none", 1),
        ("zero2", "none", 8),
        ("zero2", "optimizer", 1),
        ("zero3", "none", 1),
        ("zero3", "none", 8),
        ("zero3", "optimizer", 1),
        ("zero3", "all", 1),
    ],
)
def test_states_agree_with_deepspeeds_estimators(strategy: str, offload: str, workers: int) -> None:
    model = planned_model(load_config("plan", None, {"model.init_from": "gpt2-xl"}, {}))
    setup = Setup(strategy, offload, "fp16", grad_accum_steps=2, world_size=workers, workers_per_host=workers)
    estimate = deepspeed_estimate(model, setup)
    assert estimate is not None
    host, gpu = states(needs(model, setup))
    if offload == "none":
        # ours besides: buckets and gathered weights, which more workers do not share; theirs: gradients in half
        # precision beside those in fp32
        assert 0.9 * estimate[1] < gpu < 1.05 * estimate[1] + 1.2e9
    else:
        # theirs is values times 1.5 for buffers; pinned memory comes in powers of two and makes about that of it, a
        # little less in stage 3, whose fp32 copies are not pinned
        assert host == pytest.approx(estimate[0], rel=0.17)
        # ours besides: fp32 sums of a worker's gradients, which stay on the device (2), buckets, gathered weights (3)
        assert estimate[1] <= gpu < estimate[1] + 1.7e9 + (4 * 1.56e9 if strategy == "zero2" else 0)


def test_unknown_or_missing_gpu_memory_is_a_users_mistake() -> None:
    config = load_config("plan", None, {"plan.gpu": "Voodoo2"}, {})
    with pytest.raises(UserError, match=r"plan\.gpu_memory_gb"):
        forecast_run(config, planned_model(config), Hardware(host_memory=10**12))


P4D = """
max_workers: 1
provider: {type: aws}
available_node_types:
  head: {labels: {raygpt.io/instance-type: m5.2xlarge}}
  gpu: {labels: {raygpt.io/instance-type: p4d.24xlarge, raygpt.io/market: on-demand}, max_workers: 1}
"""


def test_clusters_are_compared_in_a_table_and_the_cheapest_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("a.yaml").write_text(P4D)
    Path("b.yaml").write_text(P4D.replace("p4d.24xlarge", "p5.48xlarge"))
    Path("c.yaml").write_text(P4D.replace("p4d.24xlarge", "p3.2xlarge"))
    run = ["--model.preset=gpt2", "--scale.num_workers=8", "--train.max_steps=18865"]
    assert plan(*run, "--cluster", "a.yaml", "b.yaml", "c.yaml", "--plan.hours=2.5", "--plan.price_per_hour=20.5") == 0
    text = capsys.readouterr().out
    assert "A run of 9,890,693,120 tokens" in text and "Each GPU (H100, 80.0 GB), most " in text
    assert "By hand: 8 x A100 40GB for 2.50 h at $20.50/h = $51.25" in text
    assert "c.yaml, 1 x p3.2xlarge + m5.2xlarge, 1 worker:\n  does not fit: scale.num_workers=8 but c.yaml has" in text
    found = json.loads(text.splitlines()[-1])
    assert found["fits"] and found["cheapest"] == {"cluster": "b.yaml", "machine": "p5.48xlarge"}
    assert [each["fits"] for each in found["clusters"]] == [True, True, False]
    assert found["clusters"][0]["usd"] == pytest.approx(20.5 * found["clusters"][0]["hours"])
    # its memory is the plan's own: the same machine described by hand needs the same bytes
    machine = ["--plan.gpu=H100", "--plan.host_memory_gb=2199", "--plan.gpus_per_host=8", "--plan.disk_gb=500"]
    assert plan(*run, *machine) == 0
    assert figures(capsys)["device_bytes"] == found["device_bytes"]


def test_without_a_length_hours_are_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(P4D)
    assert plan("--model.preset=gpt2", "--cluster", "a.yaml") == 0
    text = capsys.readouterr().out
    assert "A run of unknown length: set train.max_steps" in text
    found = json.loads(text.splitlines()[-1])
    assert found["tokens"] is None and found["cheapest"] is None and found["clusters"][0]["usd"] is None
    assert plan("--model.preset=gpt2", "--cluster", "a.yaml", "--train.epochs=2", "--data.train=text.jsonl") == 2
    assert "train.epochs=2 are of data.train=text.jsonl, which is no prepared shard folder" in capsys.readouterr().err
    assert plan("--model.preset=gpt2", "--cluster", "a.yaml", "--plan.gpu=V100") == 2
    assert "plan.gpu (--plan.gpu) has no meaning with plan.cluster" in capsys.readouterr().err


def test_a_run_that_fits_no_cluster_ends_with_what_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.yaml").write_text(P4D.replace("p4d.24xlarge", "p3.2xlarge"))
    assert (
        plan("--model.preset=gpt2-xl", "--train.max_steps=10", "--train.micro_batch_size=4", "--cluster", "a.yaml") == 2
    )
    streams = capsys.readouterr()
    assert "speed and cost are with --train.strategy=zero" in streams.out and "/ " in streams.out
    assert streams.err.startswith("raygpt: train.strategy=ddp with 4 rows per pass needs ")
    found = json.loads(streams.out.splitlines()[-1])
    assert not found["fits"] and found["clusters"][0]["usd"] > 0 and found["cheapest"] is None


def test_lambdas_prices_are_read_live_where_a_key_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against an answer in the API's form; without a key the table's price is taken and that is said."""
    pytest.importorskip("raygpt.cluster.lambda_cloud.api")
    Path("l.yaml").write_text(P4D.replace("aws", "external").replace("p4d.24xlarge", "gpu_8x_a100"))
    monkeypatch.setenv("HOME", str(tmp_path))  # no key file
    run = ["--model.preset=gpt2", "--scale.num_workers=8", "--train.max_steps=10", "--cluster", "l.yaml"]
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    assert plan(*run) == 0
    text = capsys.readouterr().out
    assert "Prices of l.yaml are those of the table: no Lambda API key is in LAMBDA_API_KEY" in text
    assert json.loads(text.splitlines()[-1])["clusters"][0]["usd_per_hour"] == pytest.approx(15.92 + 0.384)
    asked = []

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            kind = {"name": "gpu_8x_a100", "price_cents_per_hour": 1234}
            body = json.dumps({"data": {"gpu_8x_a100": {"instance_type": kind, "regions_with_capacity_available": []}}})
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("LAMBDA_API_KEY", "secret_of_a_test")
    monkeypatch.setenv("LAMBDA_API_URL", f"http://127.0.0.1:{server.server_port}")
    assert plan(*run) == 0
    server.shutdown()
    streams = capsys.readouterr()
    found = json.loads(streams.out.splitlines()[-1])["clusters"][0]
    assert found["usd_per_hour"] == pytest.approx(12.34 + 0.384) and found["price_read"] == "now"
    assert [path.endswith("/instance-types") for path, _ in asked] == [True]
    assert "secret_of_a_test" not in streams.out + streams.err
