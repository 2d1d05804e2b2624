"""Where a job is computed: an address is looked at before anything is planned, which may take minutes."""

from __future__ import annotations

import socket

from jacjobs.errors import InputError

INLINE, LOCAL, AUTO = "inline", "local", "auto"
CONNECT_TIMEOUT_SECONDS = 5.0


def is_remote(address: str) -> bool:
    """A cluster that is reached by its Jobs API: jobs are sent there, and run there."""
    return address.startswith(("http://", "https://"))


def check_address(address: str) -> None:
    """Raises InputError for what is no address, and where nobody answers: Ray itself would wait for minutes
    at a door behind which nobody is.
    """
    if address in (INLINE, LOCAL, AUTO):
        return
    if is_remote(address):
        raise InputError.about(
            "cluster.address",
            got=f"{address}, for a problem that is in this process",
            expected="auto, HOST:PORT or ray://… (or local, inline)",
            do="`jacjobs submit JOB.yaml --address` sends a job file there",
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if not host or not port.isdigit():
            raise ValueError("no HOST:PORT")
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise unreachable(address, str(error)) from None


def unreachable(address: str, why: str) -> InputError:
    return InputError.about(
        "cluster.address",
        got=f"{address!r} ({why})",
        expected="local, inline, auto, or the address of a running Ray cluster",
        do="check the address, or start one with `ray start --head`",
    )
