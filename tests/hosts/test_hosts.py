"""The hosts themselves: what tests of clusters rest on. Two seconds."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts.conftest import need_hosts
from tests.hosts.hosts import Hosts


def test_hosts_have_their_own_names_files_processes_and_links(tmp_path: Path) -> None:
    need_hosts()
    with Hosts(tmp_path, 2, shell=("export COLOUR=blue",)) as hosts:
        assert hosts.ssh(1, "hostname").strip() == hosts.host(1) != hosts.ssh(2, "hostname").strip()
        hosts.ssh(1, "touch /tmp/here ~/there; sleep 300 </dev/null >/dev/null 2>&1 &")
        assert hosts.ssh(2, "ls -d /tmp/here 2>/dev/null; echo $COLOUR").split() == ["blue"]
        assert "sleep 300" in hosts.ssh(1, "ps -eo args") and "sleep 300" not in hosts.ssh(2, "ps -eo args")
        assert any(line.startswith("sleep 300") for line in hosts.commands(1))
        ping = f"timeout 1 bash -c '</dev/tcp/{hosts.address(2)}/22'"
        hosts.ssh(1, ping)
        hosts.cut(2)
        with pytest.raises(subprocess.CalledProcessError):
            hosts.ssh(1, ping)
        hosts.heal(2)
        hosts.kill(1)
        assert hosts.pids(1) == []
        hosts.start(1)
        assert hosts.ssh(1, "ls -d /tmp/here").split() == ["/tmp/here"]
        name = hosts.name
    left = subprocess.run("ip netns list; ip link", shell=True, capture_output=True, text=True, check=True).stdout
    assert name not in left
