"""`python -m jacjobs.cli.shipped JOB.yaml`: what runs on a cluster that a job was sent to.

Looks first whether the Python there has what jacjobs needs; only then imports it.
"""

from __future__ import annotations

import platform
import sys
from importlib import metadata

from packaging.requirements import Requirement

from jacjobs.cli import events


def main() -> None:
    lacking = lacks()
    if lacking:
        version = metadata.version("jacjobs")
        message = (
            f"the cluster's Python {platform.python_version()} ({sys.executable}) {lacking}; install what "
            f"jacjobs {version} needs in its image: pip install jacjobs=={version}"
        )
        print(events.line(events.failed(2, message)), flush=True)
        sys.exit(2)
    from jacjobs.cli import app

    sys.argv[1:] = ["submit", *sys.argv[1:], "--log-format", "json"]
    app.main()


def lacks() -> str:
    """What jacjobs requires and is not here, or not in a version that it works with; empty if all is."""
    missing, other = [], []
    for line in metadata.requires("jacjobs") or []:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            missing.append(f"{wanted.name}{wanted.specifier}")
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            other.append(f"{wanted.name} {there}, not {wanted.specifier}")
    parts = [f"lacks {', '.join(missing)}"] if missing else []
    parts += [f"has {', '.join(other)}"] if other else []
    return " and ".join(parts)


if __name__ == "__main__":
    main()
