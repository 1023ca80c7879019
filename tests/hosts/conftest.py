"""Where hosts cannot be had, the tests that need them are skipped loudly."""

from __future__ import annotations

import warnings

import pytest

from tests.hosts.hosts import missing


def need_hosts() -> None:
    """Skip the test, with a warning, where this machine can have no hosts."""
    why = missing()
    if why is not None:
        warnings.warn(f"tests on hosts of their own are skipped: {why}", stacklevel=2)
        pytest.skip(why)
