"""Writes docs/metrics.md from the code: `python docs/make_metrics.py`. A test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from jacjobs.run.cluster.metrics import LABELS, METRICS  # noqa: E402

INTRODUCTION = """\
# Metrics

Made by `python docs/make_metrics.py` from the table in `jacjobs/run/cluster/metrics.py`; tests compare this
page, the dashboard, and what real runs export with that table.

A run on Ray says every half second where it stands. Each node of a Ray cluster exports that, with Ray's own
metrics, in Prometheus' format, at most 10 s later (Ray's `metrics_report_interval_ms`). What a run said last
stays after its end: counters for as long as the node lives, gauges for 20 s. Runs with
`cluster.address: inline` export nothing.
"""
LABELLED = """\
Each has the labels {labels}: the digest of the run, and the name of its job. Counters are of
one attempt (a submit or a resume); their sum over a run's attempts, `sum by (run)`, is what all of them did.
One of what has never happened is not there. None ever falls: what was taken in by an assembler that died, and
is made again, counts once, and shows in `blocks_repeated`.
"""
USE = """\
## Prometheus

While its dashboard runs, a Ray cluster keeps a list of its nodes on the head, where Prometheus can read it:

```text
scrape_configs:
  - job_name: ray
    scrape_interval: 10s
    file_sd_configs:
      - files: [/tmp/ray/prom_metrics_service_discovery.json]
```

`ray metrics launch-prometheus` downloads and starts a Prometheus that does so. Without such a list, give each
node a port, `ray start --metrics-export-port=8080 …`, and name the nodes under `static_configs`. On
Kubernetes, the pods of KubeRay export at the port that they call `metrics`.

## Grafana

[`dashboards/jacjobs.json`](../dashboards/jacjobs.json), for Grafana 10 and later: *Dashboards → New →
Import*; then choose at the top the Prometheus as data source, a job and its runs.
"""


def page() -> str:
    rows = [f"| `{metric.exported}` | {metric.kind} | {metric.help} |" for metric in METRICS]
    labels = " and ".join(f"`{label}`" for label in LABELS)
    table = ["| metric | kind | what it says |", "| --- | --- | --- |", *rows, ""]
    return "\n".join([INTRODUCTION, *table, LABELLED.format(labels=labels), USE])


if __name__ == "__main__":
    (ROOT / "docs" / "metrics.md").write_text(page(), encoding="utf-8")
