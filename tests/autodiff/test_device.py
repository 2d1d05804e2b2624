"""What a device is told, and what is found out about it; tests/gpu has what only a GPU can show."""

from __future__ import annotations

import pytest
import torch

from jacjobs.autodiff.device import available_bytes, tf32
from jacjobs.autodiff.meter import available_memory_bytes


def flags() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("allowed", [False, True])
def test_tf32_is_as_it_is_said_and_then_as_it_was(allowed: bool) -> None:
    before, seen = flags(), []

    def fails() -> None:
        with tf32(allowed):
            seen.append(flags())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert seen == [(allowed, allowed)]
    assert flags() == before


def test_tf32_stays_as_the_user_has_set_it_where_nothing_is_said() -> None:
    before = flags()
    with tf32(None):
        assert flags() == before


def test_a_host_has_what_its_system_and_its_container_leave() -> None:
    assert available_bytes(torch.device("cpu")) == pytest.approx(available_memory_bytes(), rel=0.2)
