"""Whether a cluster's address answers, and what is wrong with it where it does not."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from raygpt.cluster.doctor.finding import Finding, fail, ok

CONNECT_SECONDS = 5.0
GCS_PORT = 6379


def check_address(address: str) -> Finding:
    """A TCP connection to scale.address; `auto` is found by Ray itself."""
    if address in ("auto", "local"):
        return ok("address", f"scale.address={address}: Ray finds it on this machine")
    if address.startswith(("http://", "https://")):
        return fail(
            "address", f"{address} is a dashboard, which takes jobs but no drivers",
            f"ray job submit --address {address} -- raygpt doctor --scale.address=auto, or name HOST:{GCS_PORT}",
        )  # fmt: skip
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None:
        return fail(
            "address", f"scale.address={address} names no port", f"write HOST:PORT, as in {host or 'HOST'}:{GCS_PORT}"
        )
    try:
        with socket.create_connection((host, port), timeout=CONNECT_SECONDS):
            return ok("address", f"port {port} of {host} answers")
    except socket.gaierror:
        return fail("address", f"the name {host} is not known here", "check the spelling, DNS and the VPN")
    except ConnectionRefusedError:
        return fail("address", f"nothing listens on port {port} of {host}", "start Ray there, or name its own port")
    except OSError:
        return fail(
            "address",
            f"port {port} of {host} does not answer",
            "run this on the head node, or let the security group or firewall pass you",
        )
