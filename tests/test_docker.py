"""The Dockerfile. No engine is here: its own lines are run in a root directory made for it, where only the registries
(apt-get, curl, uv, packages that pip would download) are stood in for."""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def instructions(text: str) -> list[tuple[str, str]]:
    """(RUN, its shell line), (COPY, …) in order."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [
        (word, " ".join(rest.split())) for line in lines.splitlines() if line for word, _, rest in [line.partition(" ")]
    ]


def test_the_image_has_every_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"]) - {"dev", "llm"}
    installed = re.search(r'pip install [^\n]*"\.\[([\w,-]+)\]"', DOCKERFILE)
    assert installed is not None and set(installed[1].split(",")) == extras >= {"zero", "lora", "tune"}


def test_two_stages_on_the_cuda_runtime_and_nobody_is_root() -> None:
    steps = instructions(DOCKERFILE)
    bases = [rest for word, rest in steps if word == "FROM"]
    assert len(bases) == 2 and all(base.startswith("nvidia/cuda:${CUDA}-") for base in bases)
    last = steps[[i for i, step in enumerate(steps) if step[0] == "FROM"][1] :]
    assert ("USER", "raygpt") in last and last.index(("USER", "raygpt")) < last.index(("WORKDIR", "/work"))
    assert ("COPY", "--from=build /opt /opt") in last
    assert "wget" in " ".join(rest for word, rest in last if word == "RUN")  # KubeRay's health checks call it
    assert "--python 3.11" in DOCKERFILE and "Python 3.11" in (ROOT / "constraints.txt").read_text()


class CleanRoot:
    """A root directory with the system's programs and this environment's packages, read-only, and nothing else."""

    def __init__(self, place: Path) -> None:
        self.place, self.log = place, place / "registry.log"
        for name in ("proc", "tmp", "dev", "etc", "opt", "home", "stubs", "root"):
            (place / name).mkdir(parents=True)
        (place / "tmp").chmod(0o1777)
        (place / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (place / "etc/group").write_text("root:x:0:\n")
        for name in ("shadow", "gshadow"):
            (place / "etc" / name).touch()
        for name in ("ld.so.cache", "login.defs"):
            if Path("/etc", name).exists():
                shutil.copy(f"/etc/{name}", place / "etc")
        # what is of the host: the system, and elsewhere than here the interpreter and the environment's packages
        self.shared = {path: path for path in ("/usr", "/lib", "/lib64", "/bin", "/sbin") if Path(path).is_dir()}
        self.shared |= {sys.base_prefix: "/host/python", site.getsitepackages()[0]: "/host/packages"}
        packages = f"/opt/venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        for name, body in {
            "apt-get": 'echo apt-get "$@" >>/registry.log',
            "curl": 'echo curl "$@" >>/registry.log; echo :',
            # PyTorch from another index is pip's to find; the package itself is built and installed, as written
            "uv": 'echo uv "$@" >>/registry.log; /host/python/bin/python3 -m venv --without-pip /opt/venv'
            f" && echo /host/packages >{packages}/host.pth"
            ' && printf "#!/bin/sh\\nexec /opt/venv/bin/python -m pip \\"\\$@\\"\\n" >/opt/venv/bin/pip'
            " && chmod 755 /opt/venv/bin/pip",
        }.items():
            (place / "stubs" / name).write_text(f"#!/bin/sh\n{body}\n")
            (place / "stubs" / name).chmod(0o755)

    def run(self, line: str, env: dict[str, str], *, user: int = 0, cwd: str = "/") -> subprocess.CompletedProcess[str]:
        binds = "; ".join(
            f"mkdir -p {self.place}{to} && mount --bind -o ro {path} {self.place}{to}"
            for path, to in self.shared.items()
        )
        script = (
            f"{binds}; mount --bind /dev {self.place}/dev; mount -t proc proc {self.place}/proc; "
            f'exec chroot --userspec={user}:{user} {self.place} /bin/sh -c "cd {cwd} && $LINE"'
        )
        whole = {"PATH": "/stubs:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", **env, "LINE": line}
        whole["PATH"] = f"/stubs:{env['PATH']}" if "PATH" in env else whole["PATH"]
        return subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            env=whole,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="making a root directory needs root")
def test_its_steps_give_a_raygpt_that_runs_for_a_user_who_is_not_root(tmp_path: Path) -> None:
    root = CleanRoot(tmp_path / "image")
    env: dict[str, str] = {}
    cwd, user, entrypoint = "/", 0, ""
    system = "/usr/sbin:/usr/bin:/sbin:/bin"
    # pip as written, of what is here: no download, no dependencies (the environment has them)
    pip = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for word, rest in instructions(DOCKERFILE):
        if word == "ENV":
            for name, value in re.findall(r"(\w+)=(\S+)", rest):
                env[name] = value.replace("$PATH", env.get("PATH", system))
        elif word == "ARG" and "=" in rest:
            name, _, value = rest.partition("=")
            env.setdefault(name, value)
        elif word == "WORKDIR":
            cwd = rest
            (root.place / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            user = 1000
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = rest.split()
            for source in sources:
                to = root.place / cwd.lstrip("/") / (target if len(sources) == 1 and target != "./" else source)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(ROOT / source, to)
        elif word == "RUN":
            done = root.run(rest, {**env, **pip}, cwd=cwd)
            assert done.returncode == 0, (rest, done.stdout, done.stderr)
        elif word == "ENTRYPOINT":
            entrypoint = re.findall(r'"(.*?)"', rest)[0]
    asked = root.log.read_text()
    assert "g++" in asked and "cuda-nvcc-13-0" in asked and "uv venv --seed --python 3.11 /opt/venv" in asked
    env |= {"HOME": "/work"}
    helped = root.run(f"{entrypoint} --help && id -u && touch /work/mine", env, user=user, cwd=cwd)
    assert helped.returncode == 0, helped.stderr
    assert "pretrain" in helped.stdout and helped.stdout.split()[-1] == "1000"
    # the package that was built, with its data, and what the RayJob's entrypoint names
    for path in (
        "/opt/venv/lib/python3.11/site-packages/raygpt/cluster/rayjob_fields.yaml",
        "/opt/raygpt/jobs/configs",
    ):
        assert (root.place / path.lstrip("/")).exists(), path
