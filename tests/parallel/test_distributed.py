"""Worlds over several hosts: gloo is told which interface leads to the others."""

from __future__ import annotations

import os
import socket

import pytest
import torch.distributed as dist

from raygpt.parallel import distributed
from raygpt.parallel.distributed import address_towards, interface_of, name_gloo_interface


def test_the_interface_is_the_one_that_carries_the_address() -> None:
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.7") is None, "nobody's here"
    assert interface_of(None) is None
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("no such host.invalid") is None


@pytest.fixture
def two_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 of two, each on a host of its own; 127.0.0.9 stands for the interface between them."""
    for key, value in {"MASTER_ADDR": "192.0.2.1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "address_towards", lambda host: {"192.0.2.1": "192.0.2.2"}.get(host))
    monkeypatch.setattr(distributed, "interface_of", lambda address: {"192.0.2.2": "ens5"}.get(address))


def test_gloo_gets_the_interface_towards_the_first_rank(two_hosts: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_gloo_interface() == "ens5" and os.environ.pop("GLOO_SOCKET_IFNAME") == "ens5"
    monkeypatch.setattr(distributed, "interface_of", lambda address: "lo")
    assert name_gloo_interface() is None, "the loopback leads nowhere"


def test_what_the_user_set_and_worlds_on_one_host_are_left_alone(
    two_hosts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth7")
    assert name_gloo_interface() is None and os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert name_gloo_interface() is None and "GLOO_SOCKET_IFNAME" not in os.environ


def test_this_hosts_interfaces_can_be_asked() -> None:
    assert "lo" in [name for _, name in socket.if_nameindex()]
