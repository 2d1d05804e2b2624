"""A Ray cluster of one node on this machine, as `ray start --head` makes it, with a token."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.ports import free_port

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-at-least-this-length"
STORE_BYTES = 200 << 20


class Head:
    def __init__(self, port: int, environment: dict[str, str]) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.environment = environment


@contextmanager
def head(mark: str) -> Iterator[Head]:
    """`mark` is in the environment of all its processes, which end with it."""
    with tempfile.TemporaryDirectory(prefix="jj", dir="/tmp", ignore_cleanup_errors=True) as folder:
        gcs, dashboard = free_port(), free_port()
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "JACJOBS_TEST_HEAD": mark,
        }
        environment.pop("RAY_ADDRESS", None)
        command = [str(BIN / "ray"), "start", "--head", f"--port={gcs}", f"--dashboard-port={dashboard}"]
        command += ["--num-cpus=2", f"--object-store-memory={STORE_BYTES}", f"--temp-dir={folder}"]
        command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
        started = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        try:
            assert started.returncode == 0, started.stdout + started.stderr
            yield Head(dashboard, environment)
        finally:
            for process in processes(mark):
                with contextlib.suppress(psutil.Error):
                    process.kill()


def processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("JACJOBS_TEST_HEAD") == mark and process.pid != os.getpid():
                found.append(process)
    return found
