"""Runs the command line as a user does: in a process of its own, to be killed or to have a terminal, or right here."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import psutil

from raygpt.cli import main

ROOT = Path(__file__).resolve().parents[2]


def raygpt(*words: str, status: int = 0) -> str:
    """What `raygpt <words>` prints, run in this process on the Ray cluster that it is connected to.

    Saves the start of a process and of a cluster. `status` is the exit status it must end with.
    """
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        ended = main(words)
    assert ended == status, (words, printed.getvalue()[-4000:])
    return printed.getvalue()


class Program:
    """`raygpt <words>` in its own process group; `terminal` gives it a pseudo-terminal as its controlling one."""

    started: ClassVar[list[Program]] = []  # those whose end nobody has seen

    def __init__(self, *words: str, terminal: bool = False, env: dict[str, str] | None = None) -> None:
        self.output = ""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(env or {})}
        command = [sys.executable, "-m", "raygpt.cli", *words]
        self.master: int | None = None
        if terminal:
            self.pid, self.master = pty.fork()
            if self.pid == 0:
                os.execvpe(command[0], command, environment)
            self._reader = threading.Thread(target=self._read_terminal, daemon=True)
            self.process: subprocess.Popen[bytes] | None = None
        else:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            self.pid = self.process.pid
            self._reader = threading.Thread(target=self._read_pipe, daemon=True)
        self._reader.start()
        self.started.append(self)

    def wait_for(self, text: str, timeout: float = 120) -> None:
        """Until `text`, a regular expression, has been printed."""
        end = time.monotonic() + timeout
        while not re.search(text, self.output):
            if time.monotonic() > end or (not self._alive() and not re.search(text, self.output)):
                raise AssertionError(f"{text!r} never came; the output was:\n{self.output[-4000:]}")
            time.sleep(0.02)

    def press_ctrl_c(self) -> None:
        assert self.master is not None
        os.write(self.master, b"\x03")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 120) -> int:
        """Exit status, once it has ended."""
        if self.process is not None:
            status = self.process.wait(timeout)
        else:
            end = time.monotonic() + timeout
            while True:
                pid, code = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    status = os.waitstatus_to_exitcode(code)
                    break
                if time.monotonic() > end:
                    raise AssertionError(f"did not end in {timeout} s:\n{self.output[-4000:]}")
                time.sleep(0.05)
        self._reader.join(5)
        if self in self.started:
            self.started.remove(self)
        return status

    def kill(self) -> None:
        """SIGKILL to the driver alone; waits until the Ray processes it had started are gone too."""
        others = [
            process
            for process in psutil.Process(self.pid).children(recursive=True)
            if "Agent" not in process.name()  # Ray's two agents notice the death of their parent after a minute or more
        ]
        self.signal(signal.SIGKILL)
        self.finish()
        _, alive = psutil.wait_procs(others, timeout=60)
        assert not alive, [process.cmdline()[:3] for process in alive]

    def sweep_up(self) -> None:
        """SIGKILL to it and all below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(self.pid)
            for process in [*driver.children(recursive=True), driver]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _alive(self) -> bool:
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def _read_pipe(self) -> None:
        assert self.process is not None and self.process.stdout is not None
        while chunk := os.read(self.process.stdout.fileno(), 65536):
            self.output += chunk.decode(errors="replace")

    def _read_terminal(self) -> None:
        assert self.master is not None
        try:
            while chunk := os.read(self.master, 65536):
                self.output += chunk.decode(errors="replace")
        except OSError:
            return  # the other end is closed
