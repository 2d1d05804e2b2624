"""Unpickling onto a device: wherever a function's tensors were, they are wanted where it is called."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import torch
from torch.serialization import default_restore_location


def unpack(data: bytes, device: str, *, from_host: bool) -> Any:
    """What was pickled, its tensors on `device`: those of any GPU, and, `from_host`, those of the host.

    A problem that was on a GPU has tensors on the host because they are wanted there.
    """
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, of its own pytrees
        return _Unpickler(io.BytesIO(data), device, from_host=from_host).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, device: str, *, from_host: bool) -> None:
        super().__init__(file)
        self._device, self._from_host = device, from_host

    def find_class(self, module: str, name: str) -> Any:
        # Where every ordinary tensor's memory comes from; by itself it goes where it came from.
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._storage
        return super().find_class(module, name)

    def _storage(self, data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location=self._placed, weights_only=False)

    def _placed(self, storage: Any, location: str) -> Any:
        """`storage` is on the host, and was at `location`."""
        if location == "cpu" and not self._from_host:
            return storage
        return default_restore_location(storage, self._device)
