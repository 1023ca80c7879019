"""Whether a cluster's address answers and takes a driver, and what is wrong where it does not."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from raygpt.cluster.doctor.finding import Finding, fail, ok
from raygpt.errors import one_line

CONNECT_SECONDS = 5.0
GCS_PORT = 6379
TOKEN_REFUSED = "the cluster refuses this token"


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


def refused(error: BaseException) -> Finding:
    """Why Ray at an address did not take this driver."""
    said = " ".join(str(each) for each in _causes(error))
    if "auth" in said.lower() and "token" in said.lower():
        return fail(
            "join", TOKEN_REFUSED,
            "export RAY_AUTH_MODE=token, with the cluster's own token in ~/.ray/auth_token",
        )  # fmt: skip
    if "version" in said.lower():
        return fail("join", one_line(RuntimeError(said), 300), "install the same Python and Ray here as there")
    return fail("join", f"Ray does not take this driver: {one_line(error)}", "run this on the head node of the cluster")


def _causes(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
