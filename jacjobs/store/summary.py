"""What `jacjobs show` says of a run, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jacjobs.shape import Segment

if TYPE_CHECKING:
    from jacjobs.store.portrait import Floats, Portrait
    from jacjobs.store.reader import JacobianDataset
    from jacjobs.store.spectrum import Spectrum


def figures_of(J: JacobianDataset) -> tuple[Portrait, Spectrum | None]:
    """The portrait, and the singular values where there are any: all of J must be there, and finite."""
    portrait = J.portrait()
    sound = portrait.entries and not portrait.nonfinite and not J.missing
    return portrait, J.singular_values() if sound else None


def summary_of(J: JacobianDataset, portrait: Portrait, spectrum: Spectrum | None) -> dict[str, Any]:
    """`portrait` and `spectrum` are those of `figures_of`."""
    record = J.record
    content: dict[str, Any] = {
        "name": record.name,
        "path": J.path,
        "state": "complete" if J.complete else "incomplete",
        "missing": [str(rectangle) for rectangle in J.missing],
        "shape": list(J.shape),
        "dtype": record.shape.dtype,
        "origin": record.shape.origin or record.shape.dtype,
        "layout": record.layout,
        "outputs": _segments(J.outputs, portrait.row_norms),
        "inputs": _segments(J.inputs, portrait.column_norms),
        "strategy": record.plan["strategy"],
        "chunk": record.plan["chunk"],
        "compression": record.plan["compression"],
        "torch": record.versions.get("torch", "unknown"),
        "checks": None if J.manifest is None else J.manifest.checks,
        "parts": len(J.part_names),
        "bytes": J.stored_bytes,
        "attempts": [each.model_dump(mode="json") for each in J.attempts],
        "entries": portrait.entries,
    }
    if portrait.entries:
        content["nonfinite"] = portrait.nonfinite
        content["zeros"] = portrait.zeros / portrait.entries
        content["min"], content["max"] = _number(portrait.low), _number(portrait.high)
        content["norm"] = _number(portrait.norm)
        content["largest"] = portrait.largest
        for name in ("point", "row", "column"):
            norms: Floats = getattr(portrait, f"{name}_norms")
            content[f"{name}_norms"] = {
                "min": _number(norms.min()),
                "median": _number(np.median(norms)),
                "max": _number(norms.max()),
                "largest": int(norms.argmax()),
            }
    if spectrum is not None:
        content["singular_values"] = {
            "values": spectrum.values.tolist(),
            "complete": spectrum.complete,
            "effective_rank": effective_rank(portrait, spectrum),
        }
    return content


def effective_rank(portrait: Portrait, spectrum: Spectrum) -> float | None:
    """‖J‖² / σ₁², the squared Frobenius norm by the squared largest singular value: how many directions of
    the same weight J would have. Between 1 and the rank; 0 if J is zero, None where σ₁ is not known.

    Source: M. Rudelson, R. Vershynin, "Sampling from large matrices", J. ACM 54 (2007), as the numerical or
    stable rank.
    """
    values = spectrum.values
    if portrait.zeros == portrait.entries:
        return 0.0
    if not len(values) or not values[0]:
        return None
    if spectrum.complete:
        return float(np.square(values / values[0]).sum())
    return _number(max(1.0, float((portrait.norm / values[0]) ** 2)))


def _number(value: float) -> float | None:
    """For JSON, which has no others."""
    return float(value) if math.isfinite(value) else None


def _segments(segments: Sequence[Segment], norms: Floats) -> list[dict[str, Any]]:
    """Each with its Frobenius norm: over all points, and over all of the other axis."""
    return [
        {
            **segment.model_dump(mode="json"),
            "norm": _number(float(np.linalg.norm(norms[segment.start : segment.stop]))),
        }
        for segment in segments
    ]
