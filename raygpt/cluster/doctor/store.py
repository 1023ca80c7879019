"""run.storage from here: a small object written, read and deleted, and how S3's clock differs from this one."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
import uuid
from email.utils import parsedate_to_datetime

from raygpt import storage
from raygpt.cluster.doctor.finding import Finding, fail, ok, skipped, warn
from raygpt.errors import UserError
from raygpt.storage import Location

MIB = 2**20
HEADER_SECONDS = 5.0
# AWS refuses a signature that is 15 minutes off; a lock's age and a run's wall clock are wrong long before
SKEW_FAIL, SKEW_WARN = 300.0, 5.0


def store_checks(where: Location) -> list[Finding]:
    """Write, read back and delete below run.storage, with how fast; and for S3 the clock."""
    found = [round_trip(where)]
    if not where.is_local:
        found.append(s3_clock())
    return found


def round_trip(where: Location, size: int = MIB) -> Finding:
    """One object of `size` bytes there and back."""
    place = storage.at_start(where)
    marker, sent = place / f".doctor-{uuid.uuid4().hex[:12]}", uuid.uuid4().bytes * (size // 16)
    doing = "written"
    try:
        began = time.perf_counter()
        storage.write_bytes(marker, sent)
        wrote = time.perf_counter()
        doing = "read back"
        try:
            got = storage.read_bytes(marker)
        except FileNotFoundError:
            got = None
        read = time.perf_counter()
        doing = "deleted"
        storage.delete(marker)
    except (UserError, OSError) as error:
        said = str(error if isinstance(error, UserError) else storage.explain(error, where))
        said = said.replace(marker.uri, where.uri).rstrip(".")
        what, _, way_out = said.partition(": ")
        return fail("storage", f"run.storage: an object cannot be {doing}: {what}", way_out or "choose another place")
    if got != sent:
        return fail(
            "storage", f"{where.uri}: what was read is not what was written", "use a store that is consistent at once"
        )
    rates = f"{len(sent) / MIB / (wrote - began):.0f} MiB/s there, {len(sent) / MIB / (read - wrote):.0f} back"
    return ok("storage", f"{where.uri} takes, gives and deletes an object ({rates})")


def s3_clock(url: str | None = None) -> Finding:
    """How far this machine's clock is from the one of the S3 endpoint, by the Date of any answer."""
    url = url or storage.endpoint() or f"https://s3.{storage.region() or 'us-east-1'}.amazonaws.com"
    request = urllib.request.Request(url, method="HEAD")
    began = time.time()
    try:
        with urllib.request.urlopen(request, timeout=HEADER_SECONDS) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # a refusal has the time as well
        date = error.headers.get("Date")
    except (OSError, ValueError) as error:
        return skipped("clock to S3", f"{url} does not answer ({type(error).__name__})")
    if not date:
        return skipped("clock to S3", f"{url} says no time")
    # the header counts whole seconds, cut off
    return skew("clock to S3", (began + time.time()) / 2 - parsedate_to_datetime(date).timestamp() - 0.5, "S3")


def skew(name: str, seconds: float, whom: str) -> Finding:
    """A clock that is `seconds` ahead of whose it is compared with."""
    text = f"{abs(seconds):.1f} s {'ahead of' if seconds > 0 else 'behind'} {whom}"
    fix = "let chrony or systemd-timesyncd set it (timedatectl set-ntp true)"
    if abs(seconds) >= SKEW_FAIL:
        return fail(name, f"{text}: S3 refuses requests 15 minutes off", fix)
    if abs(seconds) >= SKEW_WARN:
        return warn(name, text, fix)
    return ok(name, f"within {max(1.0, abs(seconds)):.0f} s of {whom}")
