"""Storage: the same functions on a local disk and a real S3 server, whole files or none, one sentence on trouble."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from raygpt import storage
from raygpt.errors import UserError
from raygpt.storage import Location, locate

# A marker, so that a secret is found wherever it leaks to.
SECRET = "s3cr3t-that-must-not-travel"


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest) -> Location:
    """An empty folder, once on the local disk and once on S3."""
    if request.param == "local":
        return locate(request.getfixturevalue("tmp_path")) / "store"
    return locate(request.getfixturevalue("bucket")) / "store"


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Change AWS_* variables for one test: filesystems made before and during it are not used across its edge."""
    storage._s3.cache_clear()
    yield monkeypatch
    storage._s3.cache_clear()


def one_sentence(message: str) -> bool:
    return "\n" not in message and "Traceback" not in message and "Request ID" not in message and len(message) < 400


def test_what_is_written_is_read_back(folder: Location) -> None:
    data = os.urandom(3_000_000)
    storage.write_bytes(folder / "deep/er/file.bin", data)
    assert storage.read_bytes(folder / "deep/er/file.bin") == data
    storage.write_text(folder / "note.txt", "Größe ≈ 3\n")
    assert storage.read_text(folder / "note.txt") == "Größe ≈ 3\n"
    assert storage.is_file(folder / "note.txt") and not storage.is_file(folder / "deep")
    assert storage.exists(folder / "deep") and not storage.exists(folder / "deep/none")


def test_an_empty_file_is_a_file(folder: Location) -> None:
    storage.write_bytes(folder / "empty", b"")
    assert storage.is_file(folder / "empty")
    assert storage.read_bytes(folder / "empty") == b""


def test_reading_a_missing_file_raises_file_not_found(folder: Location) -> None:
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(folder / "none")


def test_listing_is_sorted_and_each_entry_can_be_opened(folder: Location) -> None:
    for name in ("b.txt", "a/1.txt", "c.txt", "a/0.txt"):
        storage.write_text(folder / name, name)
    assert [entry.base_name for entry in storage.list_folder(folder)] == ["a", "b.txt", "c.txt"]
    files = [storage.child(folder, e) for e in storage.list_folder(folder, recursive=True) if e.is_file]
    assert [storage.read_text(file) for file in files] == ["a/0.txt", "a/1.txt", "b.txt", "c.txt"]
    assert storage.list_folder(folder / "none") == []


def test_deleting_takes_a_file_or_a_whole_folder_and_forgives_a_missing_one(folder: Location) -> None:
    for name in ("keep", "one/a", "one/b"):
        storage.write_text(folder / name, "")
    storage.delete(folder / "one/a")
    assert not storage.exists(folder / "one/a") and storage.exists(folder / "one/b")
    storage.delete(folder / "one")
    storage.delete(folder / "one")
    assert [entry.base_name for entry in storage.list_folder(folder)] == ["keep"]


def test_a_reader_sees_the_old_file_or_the_new_one_never_a_part(folder: Location) -> None:
    target = folder / "manifest.json"
    contents = [bytes([letter]) * 500_000 for letter in b"ab"]
    storage.write_bytes(target, contents[0])
    done = threading.Event()

    def write() -> None:
        for turn in range(12):
            storage.write_bytes(target, contents[turn % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not done.is_set():
        assert storage.read_bytes(target) in contents
        seen += 1
    writer.join()
    assert seen > 3
    assert [entry.base_name for entry in storage.list_folder(folder)] == ["manifest.json"], "a file was left beside it"


def test_a_failed_local_write_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = locate(tmp_path / "config.yaml")
    storage.write_text(target, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(UserError, match="no space left") as caught:
        storage.write_text(target, "new")
    assert one_sentence(str(caught.value))
    assert storage.read_text(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_location_knows_its_name_parent_and_children(tmp_path: Path) -> None:
    assert locate("~").path == str(Path.home())
    assert locate("runs").path == str(Path("runs").absolute())
    assert locate(f"file://{tmp_path}/x").path == f"{tmp_path}/x"
    where = locate(tmp_path) / "a" / "b.txt"
    assert (where.name, where.parent.name, where.is_local) == ("b.txt", "a", True)
    assert locate(where) is where


def test_an_s3_uri_keeps_its_scheme_in_what_is_shown(s3) -> None:
    where = locate("s3://bucket/runs/") / "first"
    assert (where.uri, where.path, where.parent.uri) == (
        "s3://bucket/runs/first",
        "bucket/runs/first",
        "s3://bucket/runs",
    )
    assert not where.is_local


@pytest.mark.parametrize(
    ("uri", "says"), [("gs://bucket/x", "neither a local path nor an s3"), ("s3://", "names no bucket")]
)
def test_a_uri_of_another_kind_is_refused(uri: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        locate(uri)


@pytest.mark.parametrize("uri", ["s3://b//k", "S3://b/k/", "s3://b/./k", "s3:///b/k", "s3://b/.//k//"])
def test_an_s3_uri_means_one_thing_however_it_is_written(uri: str, endpoint: pytest.MonkeyPatch) -> None:
    endpoint.setenv("AWS_DEFAULT_REGION", "us-east-1")
    where = locate(uri)
    assert (where.path, where.uri) == ("b/k", "s3://b/k")
    with pytest.raises(UserError, match="has '..' in it"):
        locate(f"{uri}/../x")


def test_a_tilde_that_is_no_home_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("~$draft.csv").path == str(tmp_path / "~$draft.csv")


def test_wrong_credentials_are_told_at_once(bucket: str, endpoint: pytest.MonkeyPatch) -> None:
    endpoint.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    where = locate(bucket) / "runs"
    began = time.monotonic()
    for act in (
        lambda: storage.write_bytes(where / "x", b"x"),
        lambda: storage.read_bytes(where / "x"),
        lambda: storage.list_folder(where),
        lambda: storage.exists(where),
        lambda: storage.check_writable(where, "run.storage"),
    ):
        with pytest.raises(UserError, match="AWS_SECRET_ACCESS_KEY") as caught:
            act()
        assert one_sentence(str(caught.value)) and SECRET not in str(caught.value)
    assert time.monotonic() - began < 5, "refused credentials were tried again and again"


def test_missing_credentials_are_told_at_once(bucket: str, endpoint: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        endpoint.delenv(name)
    # no credentials file of the developer's either
    endpoint.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    endpoint.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"run\.storage.*AWS_ACCESS_KEY_ID") as caught:
        storage.check_writable(locate(bucket), "run.storage")
    assert one_sentence(str(caught.value))
    assert time.monotonic() - began < 5


def test_a_missing_bucket_is_told_at_once(s3) -> None:
    where = locate("s3://nobody-made-this-bucket/runs")
    began = time.monotonic()
    with pytest.raises(UserError, match="nobody-made-this-bucket/runs does not exist: check the bucket"):
        storage.check_writable(where, "run.storage")
    with pytest.raises(UserError, match=r"data\.train=s3://nobody-made-this-bucket/runs does not exist"):
        storage.check_readable(where, "data.train")
    with pytest.raises(UserError, match="create the bucket first"):
        storage.write_bytes(where / "x", b"x")
    assert time.monotonic() - began < 5


def test_an_unreachable_endpoint_is_told_in_seconds_before_a_job_begins(s3, endpoint: pytest.MonkeyPatch) -> None:
    endpoint.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    began = time.monotonic()
    for check, setting in ((storage.check_writable, "run.storage"), (storage.check_readable, "data.train")):
        with pytest.raises(UserError, match=rf"{setting}.*cannot be reached.*AWS_ENDPOINT_URL \(http://127") as caught:
            check(locate("s3://bucket/runs"), setting)
        assert one_sentence(str(caught.value))
    assert time.monotonic() - began < 15


def test_the_checks_before_a_job_pass_where_all_is_well_and_leave_nothing(folder: Location) -> None:
    storage.check_writable(folder, "run.storage")
    assert storage.list_folder(folder) == []
    storage.write_text(folder / "manifest.json", "{}")
    storage.check_readable(folder, "data.train")


def test_an_unwritable_local_folder_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"run\.storage cannot be written to: .*a file where a folder should be"
    ) as caught:
        storage.check_writable(locate(tmp_path / "file" / "runs"), "run.storage")
    assert one_sentence(str(caught.value))
    with pytest.raises(UserError, match=r"data\.train=.* does not exist"):
        storage.check_readable(locate(tmp_path / "none"), "data.train")


def test_a_server_that_answers_503_for_a_while_is_ridden_out(s3, bucket: str) -> None:
    where = locate(bucket) / "shard.bin"
    storage.write_bytes(where, b"before")
    s3.pause()
    timer = threading.Timer(6, s3.resume)
    timer.start()
    began = time.monotonic()
    try:
        storage.write_bytes(locate(bucket) / "late.bin", b"after")
        assert storage.read_bytes(where) == b"before"
    finally:
        timer.cancel()
        s3.resume()
    assert time.monotonic() - began > 4, "the server was not away at all"
    assert storage.read_bytes(locate(bucket) / "late.bin") == b"after"


def test_a_pickled_location_carries_no_secret_and_keeps_its_patience(bucket: str, endpoint: pytest.MonkeyPatch) -> None:
    where = locate(bucket) / "x.txt"
    storage.write_text(where, "hello")
    data = pickle.dumps(where)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in data
    assert os.environ["AWS_ACCESS_KEY_ID"].encode() not in data
    again = pickle.loads(data)
    assert again == where and again.fs is where.fs, "one process keeps one filesystem with its connections"
    # another process, with the credentials of its own environment
    code = (
        "import pickle, sys; from raygpt import storage; where = pickle.loads(sys.stdin.buffer.read());"
        "print(storage.read_text(where), where.fs.__reduce__()[1][2])"
    )
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert done.stdout.decode().split() == ["hello", str(storage.S3_ATTEMPTS)]


def test_the_filesystem_serves_pyarrow_and_ray_train_copies(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "up").mkdir()
    (tmp_path / "up" / "weights.bin").write_bytes(b"w" * 100_000)
    where = locate(bucket) / "checkpoint"
    travelled = pickle.loads(pickle.dumps(where.fs))
    pafs.copy_files(str(tmp_path / "up"), where.path, destination_filesystem=travelled)
    (tmp_path / "down").mkdir()
    pafs.copy_files(where.path, str(tmp_path / "down"), source_filesystem=travelled)
    assert (tmp_path / "down" / "weights.bin").read_bytes() == b"w" * 100_000
