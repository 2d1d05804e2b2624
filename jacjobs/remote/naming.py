"""What a submission is called."""

from __future__ import annotations

import re


def submission_id(name: str, digest: str) -> str:
    """Of the first attempt; the others have a number behind it."""
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", name).strip("-")[:48] or "job"
    return f"jacjobs-{slug}-{digest[:12]}"
