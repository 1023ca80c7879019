"""Fixtures of every test: real data, one Ray cluster, an S3 server per session, tiny token shards."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything reads them: nothing of the developer's own reaches a test, and no test reaches out.
for _name in list(os.environ):
    if _name.startswith(("AWS_", "LAMBDA_", "RAYGPT_", "WANDB_")) or _name in ("RAY_ADDRESS", "HF_TOKEN"):
        del os.environ[_name]
os.environ.update(
    AWS_EC2_METADATA_DISABLED="true",
    XDG_CACHE_HOME=str(Path(__file__).resolve().parent.parent / ".cache" / "home"),
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    # a cluster of the test's own, though another one has left its address in /tmp/ray
    RAY_ADDRESS="local",
    RAY_DATA_DISABLE_PROGRESS_BARS="1",
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
    WANDB_MODE="offline",
    WANDB_SILENT="true",
)

import numpy as np
import pytest
import torch

from tests import s3_server, teacher_model

if TYPE_CHECKING:
    from tests.train.gloo_pool import GlooPool

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"

torch.set_num_threads(1)


# Fixtures that start Ray or Swift: `-n 2 --dist loadgroup` keeps the tests that ask for one in one process, the rest
# run beside it, module by module.
CLUSTERS = {"ray_cluster", "one_gpu", "s3"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-file", type=Path, help="write there how long every file and every test took")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--durations-file")
    if path is not None and not hasattr(config, "workerinput"):  # under xdist the first process hears of all tests
        config.pluginmanager.register(Durations(path))


class Durations:
    """Seconds of every file and test, set-up and teardown included, slowest first. A fixture counts where it began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tests: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.tests[report.nodeid.split("@")[0]] += report.duration  # xdist appends the group

    def pytest_sessionfinish(self) -> None:
        files: Counter[str] = Counter()
        for name, seconds in self.tests.items():
            files[name.split("::")[0]] += seconds
        lines = [f"{seconds:8.1f} {name}" for table in (files, self.tests) for name, seconds in table.most_common()]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("\n".join(lines) + "\n")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups: else there are none, and each process has a cluster
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = ROOT / "tests"
    for item in items:
        shared = CLUSTERS & set(getattr(item, "fixturenames", ()))
        shared |= {"s3"} & set(map(str, getattr(getattr(item, "callspec", None), "params", {}).values()))
        item.add_marker(pytest.mark.xdist_group("clusters" if shared else str(item.path.relative_to(here))))
        if item.path.is_relative_to(here / "drills"):
            item.add_marker(pytest.mark.drill)
        if item.path.is_relative_to(here / "gpu"):
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of genuine public data (OpenWebText, Shakespeare, GPT-2's vocabulary, ...) beside the project."""
    if not SHARED_DATA.is_dir():
        # a warning as well as a skip: a run without the real data must not look like a full one
        warnings.warn(f"{SHARED_DATA} is absent: tests on real data are skipped", stacklevel=1)
        pytest.skip(f"real data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def teacher_gguf() -> Path:
    """A real pretrained model: SmolLM2-135M-Instruct as a GGUF file (134.5M parameters, Llama architecture)."""
    try:
        return teacher_model.fetch()
    except teacher_model.TeacherError as error:
        warnings.warn(f"no teacher, so that tests with a real pretrained model are skipped: {error}", stacklevel=1)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    """Trains by `run(..., pool=gloo)` on real workers without Ray Train: for what is not about Ray."""
    from tests.train.gloo_pool import GlooPool

    pool = GlooPool()
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def ray_cluster(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a local Ray cluster of six logical CPUs (four workers and their readers).

    The modules after it go on with it, unless one of them needs another and shuts it down.
    """
    if any("s3" in getattr(item, "fixturenames", ()) for item in request.session.items):
        # Ray's workers inherit the environment of the moment Ray starts, so the credentials come first
        request.getfixturevalue("s3")
    import ray

    if not ray.is_initialized():
        start_ray(cpus=6, gpus=0, object_store=600_000_000)
    yield ray.get_runtime_context().gcs_address


def start_ray(*, cpus: int, gpus: int, object_store: int) -> None:
    """A quiet cluster of this machine; CPUs and GPUs are counted, not had."""
    from raygpt.cluster.connect import start

    start(cpus=cpus, gpus=gpus, object_store_bytes=object_store)


def save_byte_model(folder: Path, *, seq_len: int, n_layer: int, n_head: int, n_embd: int) -> str:
    """The same folder, a Hugging Face one of a byte model with random weights, always the same."""
    from raygpt.data.tokenizer import byte_tokenizer
    from raygpt.model.gpt import GPT, GPTConfig
    from raygpt.model.huggingface import export_huggingface

    torch.manual_seed(0)
    tokenizer = byte_tokenizer()
    model = GPT(GPTConfig(tokenizer.vocab_size, seq_len, n_layer, n_head, n_embd))
    export_huggingface(model, folder, tokenizer_json=tokenizer.to_json(), eot_id=tokenizer.eot_id)
    return str(folder)


def pytest_sessionfinish() -> None:
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


class S3:
    """The session's S3 server as a test sees it. `env` is in os.environ already, for the whole session."""

    def __init__(self, facts: dict[str, Any]) -> None:
        import boto3

        self.endpoint: str = facts["endpoint"]
        self.key: str = facts["key"]
        self.secret: str = facts["secret"]
        self.pids: dict[str, int] = facts["pids"]
        self.env = {
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_DEFAULT_REGION": facts["region"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.key,
            aws_secret_access_key=self.secret,
            region_name=facts["region"],
        )

    def make_bucket(self, name: str) -> str:
        """`s3://name`, made where it is not there yet."""
        try:
            self.client.create_bucket(Bucket=name)
        except self.client.exceptions.BucketAlreadyOwnedByYou:
            pass
        return f"s3://{name}"

    def pause(self) -> None:
        """Hang the object server: reads and writes of objects get 503 after 2 s, as from an overloaded S3."""
        os.killpg(self.pids["object"], signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.pids["object"], signal.SIGCONT)
        # the proxy leaves a server that failed alone for half a second
        time.sleep(0.6)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server (OpenStack Swift) for the session, its address and credentials in the environment."""
    try:
        with s3_server.running(tmp_path_factory.mktemp("s3")) as facts:
            server = S3(facts)
            os.environ.update(server.env)
            yield server
            server.resume()
    except s3_server.ServerError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture
def bucket(s3: S3, request: pytest.FixtureRequest) -> str:
    """`s3://...` URI of an empty bucket of this test's own."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].rstrip("-")
    return s3.make_bucket(f"{name}-{os.urandom(4).hex()}")


@pytest.fixture
def make_shards(tmp_path: Path) -> Callable[..., str]:
    """`make_shards(tokens, uri=None, *, shard_tokens=1000, tokenizer="bytes") -> uri` of a finished shard folder.

    `tokens` is an array of ids or how many to draw (seeded, documents of about 50 tokens). Without `uri` the
    folder is a new one below tmp_path; an s3:// URI works as well.
    """
    made = 0

    def make(
        tokens: np.ndarray | int, uri: str | None = None, *, shard_tokens: int = 1000, tokenizer: str = "bytes"
    ) -> str:
        from raygpt.data.shards import ShardWriter, token_dtype
        from raygpt.data.tokenizer import load_tokenizer

        nonlocal made
        coder = load_tokenizer(tokenizer)
        if isinstance(tokens, int):
            random = np.random.default_rng(tokens)
            ids = random.integers(32, 127, tokens)
            ids[random.random(tokens) < 0.02] = coder.eot_id
            ids[-1] = coder.eot_id
            tokens = ids
        if uri is None:
            uri = str(tmp_path / f"shards-{made}")
            made += 1
        writer = ShardWriter(uri, token_dtype(coder.vocab_size), shard_tokens)
        writer.append(tokens)
        ends = int(np.count_nonzero(tokens == coder.eot_id))
        writer.finish(
            coder.info, coder.to_json(), documents=ends, text_bytes=len(tokens) - ends, sources=["make_shards"]
        )
        return uri

    return make
