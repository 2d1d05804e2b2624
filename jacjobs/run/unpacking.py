"""Unpickling onto a device: wherever a function's tensors were, they are wanted where it is called."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import torch


def unpack(data: bytes, device: str) -> Any:
    """What was pickled, every tensor of it on `device`, whatever it was on."""
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # torch's, of its own pytrees
        return _Unpickler(io.BytesIO(data), device).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, device: str) -> None:
        super().__init__(file)
        self._device = device

    def find_class(self, module: str, name: str) -> Any:
        # The one place that every pickled tensor's memory comes from; by itself it goes where it came from.
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return self._storage
        return super().find_class(module, name)

    def _storage(self, data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location=self._device, weights_only=False)
