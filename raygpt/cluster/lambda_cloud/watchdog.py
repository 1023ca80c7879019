"""On a head: end the whole cluster once Ray has not run there for a while.

    python -m raygpt.cluster.lambda_cloud.watchdog MINUTES

The autoscaler ends idle workers, and nobody ends them when it is dead; at Lambda a machine that shuts itself down is
still paid for. The head has the API key. A head that is gone altogether leaves `raygpt cluster orphans`.
"""

from __future__ import annotations

import fcntl
import sys
import time
from pathlib import Path

from raygpt.cluster.lambda_cloud.api import LambdaCloud
from raygpt.cluster.lambda_cloud.errors import LambdaError
from raygpt.cluster.lambda_cloud.machines import machine
from raygpt.cluster.lambda_cloud.orphans import read
from raygpt.cluster.lambda_cloud.pacing import cache_folder

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")  # where `ray up` leaves the cluster's file on its head
EVERY_SECONDS = 60.0


def ray_runs(proc: Path = Path("/proc")) -> bool:
    for file in proc.glob("[0-9]*/comm"):
        try:
            if file.read_text().strip() == "raylet":
                return True
        except OSError:  # ended meanwhile
            continue
    return False


def wait_until_gone(minutes: float, cloud: LambdaCloud, proc: Path = Path("/proc")) -> None:
    """Return once no raylet has been seen for `minutes`. `ray stop` and `ray start` within them change nothing."""
    seen = cloud.clock.time()
    while cloud.clock.time() - seen < 60 * minutes:
        cloud.clock.sleep(EVERY_SECONDS)
        if ray_runs(proc):
            seen = cloud.clock.time()


def end_cluster(cloud: LambdaCloud, name: str) -> None:
    """End its workers, then its head, which this process is on."""
    while True:
        try:
            # by what the list says, not by what was asked for: nobody looks after this process
            listed = map(machine, cloud.instances(believing=False))
            mine = [one for one in listed if one.cluster == name and not one.ended]
            if not mine:
                return
            workers = [one.id for one in mine if one.kind != "head"]
            cloud.terminate(workers or [one.id for one in mine])
            cloud.clock.sleep(10.0)
        except LambdaError as error:  # there is nobody to tell, and nothing better to do than to go on asking
            print(error, flush=True)
            cloud.clock.sleep(EVERY_SECONDS)


def main(minutes: float) -> None:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = open(folder / "watchdog", "w")  # noqa: SIM115 - held for as long as this process lives
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # one is enough, though `ray up` was called again
        return
    config = read(str(BOOTSTRAP.expanduser()))
    cloud = LambdaCloud.of(config["provider"])
    wait_until_gone(minutes, cloud)
    print(f"{time.strftime('%F %T')} no raylet for {minutes:g} minutes: ending {config['cluster_name']}", flush=True)
    end_cluster(cloud, str(config["cluster_name"]))


if __name__ == "__main__":
    main(float(sys.argv[1]))
