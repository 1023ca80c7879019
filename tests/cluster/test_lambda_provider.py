"""The node provider beside the stand-in cloud, by a virtual clock and without Ray's processes."""

from __future__ import annotations

import logging
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.autoscaler.tags import (
    TAG_RAY_LAUNCH_CONFIG,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_RUNTIME_CONFIG,
    TAG_RAY_USER_NODE_TYPE,
)
from ray.autoscaler.v2.instance_manager.node_provider import LaunchNodeError, NodeProviderAdapter

from raygpt.cluster.lambda_cloud import orphans, watchdog
from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.errors import LambdaError
from raygpt.cluster.lambda_cloud.launch import NoCapacity
from raygpt.cluster.lambda_cloud.machines import CLUSTER, KIND, machine
from raygpt.cluster.lambda_cloud.pacing import Pacing
from raygpt.cluster.lambda_cloud.provider import LambdaNodeProvider, public_key
from raygpt.errors import UserError
from tests.cluster.lambda_server import KEY, REGIONS, Clock, Cloud, Faults

PUBLIC = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA me@laptop"
# as `ray up` and the autoscaler v2 give them
HEAD = {
    TAG_RAY_NODE_KIND: "head",
    TAG_RAY_USER_NODE_TYPE: "head",
    TAG_RAY_LAUNCH_CONFIG: "c0ffee" * 6,
    TAG_RAY_NODE_NAME: "ray-a10-head",
    TAG_RAY_NODE_STATUS: "uninitialized",
}
WORKER = {**HEAD, TAG_RAY_NODE_KIND: "worker", TAG_RAY_USER_NODE_TYPE: "worker", TAG_RAY_LAUNCH_REQUEST: "r-1"}
NODE = {"instance_type": "gpu_1x_a10"}


class Account:
    """One stand-in cloud; `process()` is a provider as a new process makes it."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.cloud = Cloud(self.clock, **settings)
        self.folder = folder

    def api(self) -> LambdaCloud:
        pacing = Pacing(self.folder / "pace", clock=self.clock)
        return LambdaCloud("x", KEY, pacing=pacing, clock=self.clock, send=self.cloud.send)

    def process(self, name: str = "a10", **provider: Any) -> LambdaNodeProvider:
        return LambdaNodeProvider({"ssh_public_key": PUBLIC, **provider}, name, self.api())

    def up(self, **provider: Any) -> tuple[LambdaNodeProvider, str]:
        """A cluster whose head runs."""
        there = self.process(**provider)
        there.create_node(NODE, HEAD, 1)
        self.clock.sleep(60)
        return there, there.non_terminated_nodes(HEAD)[0]

    def launched(self) -> list[tuple[str, str]]:
        return [(m.request["region_name"], m.request["instance_type_name"]) for m in self.cloud.machines.values()]


@pytest.fixture
def account(tmp_path: Path) -> Account:
    return Account(tmp_path)


def test_a_head_is_there_for_ray_up_from_the_moment_it_is_launched(account: Account) -> None:
    there = account.process()
    assert there.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"}) == []
    there.create_node(NODE, HEAD, 1)
    (head,) = there.non_terminated_nodes(HEAD)  # Ray waits for exactly one with exactly these tags
    assert not there.is_running(head) and not there.is_terminated(head)
    assert there.external_ip(head) is None and there.internal_ip(head) is None  # an empty ip while it boots
    account.clock.sleep(60)
    there.non_terminated_nodes({})
    assert (
        there.is_running(head) and there.external_ip(head) == "198.51.100.1" and there.internal_ip(head) == "10.0.2.1"
    )
    assert there.get_node_id("10.0.2.1", use_internal_ip=True) == head


def test_the_end_of_a_set_up_is_seen_by_other_computers(account: Account) -> None:
    there, head = account.up()
    there.set_node_tags(head, {TAG_RAY_NODE_STATUS: "waiting-for-ssh"})
    assert there.node_tags(head)[TAG_RAY_NODE_STATUS] == "waiting-for-ssh"
    assert account.process().node_tags(head)[TAG_RAY_NODE_STATUS] == "uninitialized"
    there.set_node_tags(head, {TAG_RAY_NODE_STATUS: "up-to-date", TAG_RAY_RUNTIME_CONFIG: "f" * 40})
    assert account.process().node_tags(head)[TAG_RAY_NODE_STATUS] == "up-to-date"
    assert account.cloud.machines[head].name == "raygpt a10 head up-to-date"
    assert there.node_tags(head)[TAG_RAY_RUNTIME_CONFIG] == "f" * 40
    renames = [
        path for _, method, path in account.cloud.requests if method == "POST" and path.startswith("/instances/")
    ]
    assert len(renames) == 1  # of the states on the way none is worth a second


def test_clusters_of_one_account_do_not_see_each_other(account: Account) -> None:
    _, head = account.up()
    other = account.process("a100")
    assert other.non_terminated_nodes({}) == [] and other.is_terminated(head)


def test_the_head_goes_where_there_is_room_and_its_workers_go_there_too(tmp_path: Path) -> None:
    account = Account(tmp_path, capacity={"us-east-1": 0, "us-west-1": 5, "us-south-1": 5})
    there, _ = account.up(regions=["us-east-1", "us-south-1", "us-west-1"])
    account.cloud.capacity["us-east-1"] = 5
    there.create_node(NODE, WORKER, 2)
    assert {region for region, _ in account.launched()} == {"us-south-1"}
    account.cloud.capacity["us-south-1"] = 0
    with pytest.raises(NoCapacity, match="no gpu_1x_a10 free in us-south-1 now"):
        there.create_node(NODE, WORKER, 1)


def test_a_region_that_has_no_room_after_all_is_passed_over(account: Account) -> None:
    account.cloud.faults = Faults(script={"launch": ["no_capacity"]})
    account.up(regions=["us-west-1", "us-east-1"])
    assert account.launched() == [("us-east-1", "gpu_1x_a10")]


def test_a_head_prefers_a_region_that_has_its_workers_type_as_well(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = {"gpu_1x_a10": REGIONS, "gpu_8x_a100": ("us-south-1",)}
    entry = account.cloud._type_entry

    def types(name: str) -> dict[str, Any]:
        regions = [{"name": region, "description": region} for region in free.get(name, ())]
        return {**entry(name), "regions_with_capacity_available": regions}

    monkeypatch.setattr(account.cloud, "_type_entry", types)
    account.up(instance_types=["gpu_1x_a10", "gpu_8x_a100"])
    assert account.launched() == [("us-south-1", "gpu_1x_a10")]


def test_a_machine_that_is_gone_is_terminated_and_may_be_ended_again(account: Account) -> None:
    there, head = account.up()
    account.cloud.machines[head].status = "vanished"  # the API answers 404 for it from now on
    account.clock.sleep(10)
    assert there.non_terminated_nodes({}) == [] and there.is_terminated(head) and not there.is_running(head)
    assert there.node_tags(head) == {} and there.external_ip(head) is None
    there.terminate_node(head)
    there.set_node_tags(head, {TAG_RAY_NODE_STATUS: "update-failed"})


def test_a_preempted_machine_is_gone_for_ray_and_ended_at_lambda(account: Account) -> None:
    there, head = account.up()
    account.cloud.machines[head].status = "preempted"
    account.clock.sleep(10)
    assert there.non_terminated_nodes({}) == [] and there.is_terminated(head)
    assert account.cloud.machines[head].status == "terminating"


def test_a_machine_that_never_comes_up_is_ended_in_time(account: Account) -> None:
    account.cloud.faults = Faults(never_active=1.0)
    there = account.process(boot_timeout_minutes=10)
    there.create_node(NODE, HEAD, 1)
    account.clock.sleep(500)
    assert len(there.non_terminated_nodes({})) == 1
    account.clock.sleep(200)
    assert there.non_terminated_nodes({}) == [] and account.cloud.live() == []


def test_a_head_that_is_unhealthy_for_a_while_is_not_ended(account: Account) -> None:
    there, head = account.up()
    there.set_node_tags(head, {TAG_RAY_NODE_STATUS: "up-to-date"})
    account.clock.sleep(7200)
    account.cloud.machines[head].status = "unhealthy"
    for process in (there, account.process()):
        assert process.non_terminated_nodes({}) == [head] and not process.is_running(head)


def test_without_a_private_address_the_public_one_serves_and_is_told_of(
    account: Account, caplog: pytest.LogCaptureFixture
) -> None:
    account.cloud.faults = Faults(no_private_ip=1.0)
    with caplog.at_level(logging.WARNING):
        there, head = account.up()
        assert there.internal_ip(head) == there.internal_ip(head) == there.external_ip(head) == "198.51.100.1"
    assert len([record for record in caplog.records if "no private address" in record.message]) == 1


def test_a_launch_whose_answer_is_lost_is_found_again(account: Account) -> None:
    account.cloud.faults = Faults(script={"launch": ["lost", "lost"]})
    there = account.process()
    made = there.create_node(NODE, HEAD, 1)
    assert list(made) == list(account.cloud.machines) and account.cloud.launches == 1
    assert there.create_node(NODE, WORKER, 1).keys() <= account.cloud.machines.keys() and account.cloud.launches == 2


def test_a_second_machine_of_one_launch_is_ended_when_it_shows(account: Account) -> None:
    account.cloud.faults = Faults(script={"launch": ["late"]}, rng=random.Random(5))
    there = account.process()
    there.create_node(NODE, HEAD, 1)
    (late, *_) = account.cloud.machines.values()
    late.appears = account.clock.time() + 5
    if account.cloud.launches == 1:  # it came while it was looked for
        late.appears = account.clock.time() - 1
    account.clock.sleep(60)
    assert len(there.non_terminated_nodes({})) == 1
    assert len(account.cloud.live()) == 1


@pytest.mark.parametrize("listed_after", [0.0, 200.0])
def test_ray_up_killed_between_launch_and_answer_makes_no_second_head(account: Account, listed_after: float) -> None:
    """Tags travel with the launch, so there is no moment in which a machine has none."""
    killed = account.process()

    def send(method: str, path: str, body: Any) -> Any:
        answer = account.cloud.send(method, path, body)
        if path.endswith("launch"):
            raise KeyboardInterrupt  # nothing after it runs
        return answer

    killed.cloud._send = send
    with pytest.raises(KeyboardInterrupt):
        killed.create_node(NODE, HEAD, 1)
    (first,) = account.cloud.machines.values()
    first.appears += listed_after  # the list may lag behind
    again = account.process()
    if not again.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"}):
        again.create_node(NODE, HEAD, 1)
    account.clock.sleep(listed_after + 10)
    assert len(again.non_terminated_nodes({TAG_RAY_NODE_KIND: "head"})) == 1
    assert len(account.cloud.live()) == 1


def test_a_relaunched_head_is_not_taken_for_a_second_one(account: Account) -> None:
    """`ray up` with another launch configuration: the old head ends, and the list still shows it."""
    there, old = account.up()
    account.clock.sleep(3600)
    there.terminate_node(old)
    account.cloud.machines[old].status = "active"
    there.create_node(NODE, HEAD, 1)
    (new,) = there.non_terminated_nodes(HEAD)
    assert new != old and account.process().non_terminated_nodes({TAG_RAY_NODE_KIND: "head"})


def test_the_key_is_registered_once_and_only_ssh_is_let_in(account: Account) -> None:
    account.cloud.keys.clear()
    there, _ = account.up(ssh_from=["203.0.113.7"])
    there.create_node(NODE, WORKER, 2)
    assert [key["public_key"] for key in account.cloud.keys] == [PUBLIC]
    (ruleset,) = account.cloud.rulesets
    assert ruleset["rules"] == [
        {"protocol": "tcp", "port_range": [22, 22], "source_network": "203.0.113.7/32", "description": "raygpt: SSH"}
    ]
    assert all(m.request["firewall_rulesets"] == [{"id": ruleset["id"]}] for m in account.cloud.machines.values())


def test_a_filesystem_is_made_once_and_draws_the_cluster_to_its_region(account: Account) -> None:
    account.up(filesystem="corpus")
    (made,) = account.cloud.filesystems
    account.cloud.machines.clear()
    made["region"] = {"name": "us-south-1", "description": ""}
    account.up(filesystem="corpus", regions=["us-east-1", "us-south-1"])
    assert account.launched() == [("us-south-1", "gpu_1x_a10")] and len(account.cloud.filesystems) == 1
    assert next(iter(account.cloud.machines.values())).request["file_system_names"] == ["corpus"]
    with pytest.raises(UserError, match=r"provider.filesystem=corpus is in us-south-1"):
        account.process("b", filesystem="corpus", regions=["us-east-1"]).create_node(NODE, HEAD, 1)


def test_a_quota_of_zero_and_an_unknown_type_are_one_sentence_each(tmp_path: Path) -> None:
    account = Account(tmp_path, quota=0)
    with pytest.raises(UserError, match=r"launch gpu_1x_a10 in .*quota-exceeded.*: end machines"):
        account.process().create_node(NODE, HEAD, 1)
    assert account.cloud.launches == 0
    with pytest.raises(UserError, match="no type of machine named gpu_9x: .*gpu_1x_a10"):
        account.process().create_node({"instance_type": "gpu_9x"}, HEAD, 1)
    with pytest.raises(UserError, match="cluster_name=Two Words is no name"):
        account.process("Two Words")


def test_an_api_that_is_down_for_a_while_leaves_the_last_listing(account: Account) -> None:
    there, head = account.up()
    account.cloud.faults = Faults(error=1.0)
    account.clock.sleep(10)
    assert there.non_terminated_nodes({}) == [head]  # not: all are gone, launch new ones
    account.clock.sleep(600)
    with pytest.raises(LambdaError):
        there.non_terminated_nodes({})


def test_ray_s_autoscaler_sees_nodes_and_failed_launches_through_its_adapter(account: Account) -> None:
    there, head = account.up()

    class Reader:
        def get_cached_autoscaling_config(self) -> Any:
            return self

        def get_cloud_node_config(self, name: str) -> dict[str, str]:
            return {"instance_type": "gpu_1x_a10" if name == "worker" else "gpu_9x"}

        def get_node_resources(self, name: str) -> dict[str, float]:
            return {"GPU": 1}

        def get_node_labels(self, name: str) -> dict[str, str]:
            return {}

        def get_config(self, name: str, default: Any = None) -> Any:
            return {"cluster_name": "a10", "auth": {}}.get(name, default)

    adapter = NodeProviderAdapter(there, Reader())  # type: ignore[arg-type]
    adapter.launch({"worker": 2}, "request-1")
    adapter.launch({"other": 1}, "request-2")
    adapter._main_executor.shutdown()
    adapter._node_launcher_executors.shutdown()
    account.clock.sleep(60)
    nodes = adapter.get_non_terminated()
    assert {node.request_id for key, node in nodes.items() if key != head} == {"request-1"} and len(nodes) == 3
    assert all(node.is_running for node in nodes.values())
    (error,) = adapter.poll_errors()
    assert isinstance(error, LaunchNodeError) and error.request_id == "request-2" and error.node_type == "other"
    assert account.cloud.violations == []


def test_threads_share_one_listing(account: Account) -> None:
    there, head = account.up()
    account.clock.sleep(10)
    before = len(account.cloud.requests)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: there.non_terminated_nodes({}), range(8)))
    assert found == [[head]] * 8 and len(account.cloud.requests) <= before + 2


def test_ray_down_and_the_list_agrees(account: Account) -> None:
    there, head = account.up()
    workers = list(there.create_node(NODE, WORKER, 2))
    there.terminate_nodes(workers)
    there.terminate_nodes([head])
    assert there.non_terminated_nodes({}) == [] and account.cloud.live() == []


def test_bootstrap_tells_the_head_all_it_needs_and_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAMBDA_API_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    (tmp_path / "id").write_text("private")
    (tmp_path / "id.pub").write_text(PUBLIC + "\n")
    nodes = {"head": {"node_config": NODE}, "worker": {"node_config": {"instance_type": "gpu_8x_a100"}}}
    config = {"provider": {}, "auth": {"ssh_private_key": str(tmp_path / "id")}, "available_node_types": nodes}
    provider = LambdaNodeProvider.bootstrap_config(config)["provider"]
    assert provider["api"] == "http://127.0.0.1:9" and provider["ssh_public_key"] == PUBLIC
    assert provider["instance_types"] == ["gpu_1x_a10", "gpu_8x_a100"] and "@" in provider["owner"]
    assert KEY not in str(config) and "private" not in str(provider)
    assert public_key({}) == "" and public_key({"ssh_private_key": str(tmp_path / "none")}) == ""


# Orphans


def test_orphans_are_named_with_what_they_cost_and_ended(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    there, head = account.up()
    workers = list(there.create_node(NODE, WORKER, 2))
    account.api().launch({"region_name": "us-east-1", "instance_type_name": "gpu_8x_a100", "ssh_key_names": ["laptop"]})
    # there is a head, and another's machine is not ours
    assert orphans.orphans(None, end=True, cloud=account.api()) == 0
    assert "no orphans" in capsys.readouterr().out and len(account.cloud.live()) == 4
    account.api().terminate([head])  # from the dashboard, say
    account.clock.sleep(2 * 3600)
    assert orphans.orphans(None, end=False, cloud=account.api()) == 1
    told = capsys.readouterr().out
    assert "2 orphans at $2.58 an hour: raygpt cluster orphans --end" in told
    assert all(worker in told for worker in workers) and "its cluster has no head" in told
    assert told.count("2.0 h") == 2 and "$2.59" in told and "$2.58" in told  # 12.5 s apart
    assert orphans.orphans(None, end=True, cloud=account.api()) == 0
    assert "ended 2 machines" in capsys.readouterr().out and len(account.cloud.live()) == 1


def test_orphans_that_do_not_end_are_said_to_run(account: Account, capsys: pytest.CaptureFixture[str]) -> None:
    there, head = account.up()
    (worker,) = there.create_node(NODE, WORKER, 1)
    account.api().terminate([head])
    account.cloud._terminate = lambda ids: (200, {"data": {"terminated_instances": []}})  # type: ignore[method-assign]
    assert orphans.orphans(None, end=True, cloud=account.api()) == 1
    assert f"still running after 120 s: {worker}" in capsys.readouterr().out


def test_the_watchdog_ends_a_cluster_whose_head_has_no_ray(account: Account, tmp_path: Path) -> None:
    there, _ = account.up()
    there.create_node(NODE, WORKER, 2)
    account.process("other").create_node(NODE, HEAD, 1)
    proc = tmp_path / "proc" / "12"
    proc.mkdir(parents=True)
    (proc / "comm").write_text("raylet\n")
    assert watchdog.ray_runs(proc.parent)

    class Stopping(Clock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            if self.now - began > 7200:
                (proc / "comm").write_text("bash\n")

    began = account.clock.now
    clock = Stopping()
    clock.now = began
    watchdog.wait_until_gone(
        60, LambdaCloud("x", KEY, pacing=Pacing(tmp_path / "w", clock=clock), clock=clock), proc.parent
    )
    assert 7200 + 3500 < clock.now - began < 7200 + 3800
    account.cloud.faults = Faults(script={"terminate": ["error", "lost"]})
    watchdog.end_cluster(account.api(), "a10")
    assert [m.request["name"] for m in account.cloud.live()] == ["raygpt other head"]


def test_a_machine_is_raygpt_s_by_its_tags_whatever_it_is_called() -> None:
    entry = {
        "id": "x",
        "name": "raygpt dev box",
        "status": "active",
        "region": {"name": "us-east-1"},
        "instance_type": {"name": "gpu_1x_a10", "price_cents_per_hour": 129},
    }
    assert machine(entry).cluster is None and machine(entry).kind is None


def test_the_watchdog_makes_its_folder_and_goes_on_until_the_list_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has nobody behind it: what was asked for once and still runs is asked for again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none" / "yet"))
    monkeypatch.setattr(watchdog, "read", lambda file: {"provider": {}, "cluster_name": "a10"})
    monkeypatch.setattr(watchdog.LambdaCloud, "of", staticmethod(lambda provider: None))
    monkeypatch.setattr(watchdog, "wait_until_gone", lambda minutes, cloud: None)
    ended: list[str] = []
    monkeypatch.setattr(watchdog, "end_cluster", lambda cloud, name: ended.append(name))
    watchdog.main(60)
    assert ended == ["a10"]
    monkeypatch.undo()
    tags = [{"key": key, "value": value} for key, value in ((CLUSTER, "a10"), (KIND, "head"))]
    entry = {"id": "x", "name": "", "status": "active", "region": {"name": "r"}, "tags": tags}
    entry |= {"instance_type": {"name": "t", "price_cents_per_hour": 1}}
    asked: list[list[str]] = []

    class Deaf:
        """Answers that it ends a machine, and ends it at the third time."""

        clock = SimpleNamespace(sleep=lambda seconds: None)

        def instances(self, believing: bool = True) -> list[dict[str, Any]]:
            assert not believing
            return [entry] if len(asked) < 3 else []

        def terminate(self, ids: list[str]) -> None:
            asked.append(ids)

    watchdog.end_cluster(Deaf(), "a10")  # type: ignore[arg-type]
    assert asked == [["x"]] * 3
