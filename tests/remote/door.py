"""Ways to a server that a test opens and shuts."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit


class Door:
    """A port that leads to another address, as long as it is open."""

    def __init__(self, address: str) -> None:
        self._to = ("127.0.0.1", urlsplit(address).port or 80)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._open = True
        self._through: list[socket.socket] = []

    def __enter__(self) -> Door:
        threading.Thread(target=self._let_in, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shut()
        self._listening.close()

    def shut(self) -> None:
        """Whoever is on the way through is cut off, and who knocks is turned away."""
        self._open = False
        for one in self._through:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._through.clear()

    def open(self) -> None:
        self._open = True

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = self._listening.accept()
                if not self._open:
                    guest.close()
                    continue
                host = socket.create_connection(self._to)
                self._through += [guest, host]
                for pair in ((guest, host), (host, guest)):
                    threading.Thread(target=carry, args=pair, daemon=True).start()


def carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextmanager
def saying(answer: bytes) -> Iterator[str]:
    """A server that says the same to everybody."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                guest, _ = listening.accept()
                with guest:
                    guest.recv(65536)
                    guest.sendall(answer)

    threading.Thread(target=answer_all, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.close()
