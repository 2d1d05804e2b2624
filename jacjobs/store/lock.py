"""One writer a run: a lock file with host, process and heartbeat.

A lock is stale when its process is gone (same host), its heartbeat is old (any host), or this process let go
of it and could not remove it, since the store was down. A stale lock is taken over; a live one is refused. A
holder that was suspended, and finds its lock taken over when it wakes, stops.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid

import psutil

from jacjobs.errors import RunHeldError, StoreError
from jacjobs.store.commit import storing
from jacjobs.store.place import Place
from jacjobs.store.plausible import is_shallow

NAME = "_jacjobs/lock.json"

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
PATIENCE_SECONDS = 15.0
"""How long to wait for a holder that may just be dying: that of a job which was killed a moment ago."""
_LET_GO: set[str] = set()
"""Tokens of the locks that this process has released."""


class RunLock:
    """Held from `acquire` to `release`; meanwhile a thread shows that the holder lives."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._token = uuid.uuid4().hex
        self._holder = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
            "token": self._token,
        }
        self._over = threading.Event()
        self._taken_by: dict[str, object] | None = None

    def acquire(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """Raises RunHeldError if somebody else holds the lock and lives."""
        give_up = time.monotonic() + patience_seconds
        while not self._try():
            if time.monotonic() >= give_up:
                raise RunHeldError.about(
                    f"run {self._place}",
                    got=f"a run in progress, by {holder_of(self._place)}",
                    expected="one writer at a time",
                    do="wait for it, or stop it first",
                )
            time.sleep(0.2)
        threading.Thread(target=self._beat, daemon=True).start()

    def check(self) -> None:
        """Raises StoreError if somebody took this lock, since its holder seemed to be gone."""
        if self._taken_by is not None:
            raise StoreError(
                f"run {self._place} was taken over by {_named(self._taken_by)}, since this process showed no "
                f"life for {STALE_SECONDS:.0f} s; it goes on there"
            )

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT_SECONDS):
            # A store that is down for a while is no reason to stop; whoever writes a part will see it.
            with contextlib.suppress(OSError):
                holder = _holder(self._read())
                if holder is not None and holder.get("token") != self._token:
                    self._taken_by = holder
                    return
                self._place.touch(NAME)

    def release(self) -> None:
        """Safe to call twice, and by one that never got it."""
        _LET_GO.add(self._token)
        self._over.set()
        if (_holder(self._read()) or {}).get("token") == self._token:
            with storing(self._place.at(NAME)):
                self._place.remove(NAME)

    def _try(self) -> bool:
        mine = json.dumps(self._holder).encode()
        with storing(self._place.at(NAME)):
            if self._place.create(NAME, mine):
                return True
            found = self._read()
            if found is None or not _is_stale(self._place, found):
                return False
            return self._place.exchange(NAME, found, mine)

    def _read(self) -> bytes | None:
        try:
            return self._place.read(NAME)
        except OSError:
            return None


def holder_of(place: Place) -> str | None:
    """Who writes there now, as process and host; None if nobody does, or whoever did is gone."""
    try:
        found = place.read(NAME)
        if _is_stale(place, found):
            return None
    except OSError:
        return None
    return _named(_holder(found) or {})


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _is_stale(place: Place, found: bytes) -> bool:
    try:
        age = place.age_seconds(NAME)
    except FileNotFoundError:
        return False
    holder = _holder(found)
    if holder is None:  # created, but not written yet: its writer may be on its way
        return age > PATIENCE_SECONDS / 3
    if str(holder.get("token")) in _LET_GO:
        return True
    if holder.get("host") == socket.gethostname():
        return not _alive(holder)
    return age > STALE_SECONDS


def _holder(found: bytes | None) -> dict[str, object] | None:
    try:
        content = json.loads(found or b"")
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) and is_shallow(content) else None


def _alive(holder: dict[str, object]) -> bool:
    """Is it a process of this host that has not ended? A number that is used again is another process."""
    try:
        process = psutil.Process(int(str(holder["pid"])))
        same = abs(process.create_time() - float(str(holder.get("started", 0)))) < 2
        return same and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, KeyError, ValueError):  # not even a number: nothing of ours wrote it
        return False
    except psutil.AccessDenied:
        return True
