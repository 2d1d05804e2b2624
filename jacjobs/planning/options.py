"""What a user may ask for, by hand or in a job file, with its defaults. Every unknown key is refused."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from cronsim import CronSim, CronSimError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from jacjobs.shape import Compression, DenseLayout

LARGEST = 2**63 - 1
"""Of integers: what torch and Arrow can take."""
Count = Annotated[int, Field(ge=1, le=LARGEST, strict=True)]
Memory = Annotated[str, Field(pattern=r"^[0-9]{1,15}(\.[0-9]{1,15})? ?(B|KiB|MiB|GiB|TiB)$")]
Timeout = Literal["auto", "off"] | Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
StrategyName = Literal[
    "vjp/loop",
    "vjp/repeat",
    "vjp/vmap",
    "jvp/loop",
    "jvp/repeat",
    "jvp/vmap",
    "double-vjp/loop",
    "double-vjp/repeat",
    "double-vjp/vmap",
    "vjp/compiled",
    "jvp/compiled",
]


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ComputeOptions(_Options):
    """How products are made.

    strategy:   one by name, or auto: the fastest of the nine that the function supports. Compiled ones (by
                torch.compile, which needs a C++ compiler on hosts) are taken if they are asked for.
    chunk:      how many products are made at once, or auto: as many as fit and help.
    memory:     what products in the making may take in each worker: bytes ("8GiB"), or a fraction of what is
                free (0.9). Default: 0.9 of a GPU's; half of a host's, shared among its workers, with the
                blocks.
    dtype:      cast the floating-point arguments to it first; null leaves them as they are.
    seed:       for a random function (dropout): every call of it begins with this seed.
    tf32:       on a GPU, round the factors of float32 products to TF32, which has three digits: faster,
                and off unless it is asked for, for convolutions too.
    check:      how much of J is compared with a product of the other mode: auto (a sample of points that
                costs at most 2% of the products, and at least one a block), all points, or off.
    nonfinite:  what NaN or infinity in J means: an error (the default), a warning, or nothing.
    structure:  whether zeros that are known before are left out: auto (a pattern is looked for where a dense
                J would be large, and used where that saves most products and most of the disk), sparse
                (always, or the job is refused), or dense. Sparse, a record of the dataset is a row's
                entries: `output.layout` is for dense ones.
    block_timeout:  after how many seconds at one block a worker counts as hung: it is killed, and another
                gets the block; auto: 100 times what blocks take, and at least ten minutes; or off.
    """

    strategy: Literal["auto"] | StrategyName = "auto"
    chunk: Literal["auto"] | Count = "auto"
    memory: Annotated[float, Field(gt=0, le=1, strict=True)] | Memory | None = None
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST, strict=True)] | None = None
    tf32: Annotated[bool, Field(strict=True)] = False
    check: Literal["auto", "all", "off"] = "auto"
    nonfinite: Literal["error", "warn", "allow"] = "error"
    structure: Literal["auto", "sparse", "dense"] = "auto"
    block_timeout: Timeout = "auto"


class OutputOptions(_Options):
    """Where the dataset goes and how it is written.

    path:         a folder, or the URI of one in an object store (s3://bucket/…, gs://bucket/…).
    layout:       what a record holds: a row of J (the default, whatever the mode), or a column.
    compression:  none (fastest), zstd or lz4 (both with BYTE_STREAM_SPLIT, zstd at level 1), or auto: zstd if
                  it saves a fifth of a sample of J, else none.
    dtype:        what J is stored as; null: as it is computed (bfloat16 as float32, which holds it exactly).
    overwrite:    replace a run of another job at the same path, instead of refusing.
    """

    path: Annotated[str, Field(min_length=1)]
    layout: DenseLayout = "rows"
    compression: Literal["auto", Compression] = "auto"
    dtype: Literal["float16", "float32", "float64"] | None = None
    overwrite: Annotated[bool, Field(strict=True)] = False


def _gpus(number: float) -> float:
    """Ray gives whole GPUs, or a part of one."""
    if 0 <= number <= 1 or (number.is_integer() and 0 <= number <= LARGEST):
        return number
    raise PydanticCustomError("gpus", "a whole number, or a part of one GPU such as 0.5")


class ClusterOptions(_Options):
    """Who computes.

    address:          local (an embedded Ray), auto or HOST:PORT or ray://… (an existing cluster), or inline
                      (this process, no Ray).
    workers:          how many, or auto: as many as the GPUs, or else the CPUs, allow; on an existing cluster
                      they become more and fewer with its nodes, and where it scales by itself they ask for
                      as many as it may grow to.
    cpus_per_worker:  cores and torch threads of each worker. With one, the default, no worker's threads or
                      memory are spread over sockets.
    gpus_per_worker:  auto: 1 where the cluster has GPUs, else 0. A fraction shares a GPU and its memory.
    """

    address: Annotated[str, Field(min_length=1)] = "local"
    workers: Literal["auto"] | Count = "auto"
    cpus_per_worker: Count = 1
    gpus_per_worker: Literal["auto"] | Annotated[float, AfterValidator(_gpus)] = "auto"

    def gpus_each(self, there: bool) -> float:
        """What a worker gets where there are GPUs, or none."""
        return float(there) if self.gpus_per_worker == "auto" else self.gpus_per_worker


def workers_on(gpus: float, each: float) -> int:
    """How many workers so many GPUs serve. A part of a GPU is of one."""
    return int(gpus) * int(1 / each) if each < 1 else int(gpus / each)


# -- when ----------------------------------------------------------------------------------------------------

ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
LONGEST_CRON = 200
_CRON = "five fields of cron (minute hour day month weekday), or an alias such as @daily"
_DURATION = re.compile(r"([0-9]{1,6}) ?(s|min|h|d)")
_UNIT_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def _cron(text: str) -> str:
    """What every cron knows. `L`, `LW` and `#` are cronsim's alone, and there is no occurrence at @reboot."""
    expression = ALIASES.get(text.lower(), text)
    wrong = ""
    if len(text) > LONGEST_CRON or not text.isascii():
        wrong = f"at most {LONGEST_CRON} characters, of ASCII"
    elif re.search(r"#|\dL|\bLW?\b", expression.upper()):
        wrong = "not every cron knows L, LW and #"
    else:
        try:
            next(CronSim(expression, datetime(2024, 1, 1, tzinfo=UTC)))
        except CronSimError as error:
            wrong = str(error)[0].lower() + str(error)[1:]
        except StopIteration:
            wrong = "this never comes"
    if wrong:
        raise PydanticCustomError("cron", "{expected}", {"expected": f"{_CRON}; {wrong}"})
    return text


def _timezone(name: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        known = {zone.lower(): zone for zone in zoneinfo.available_timezones()}
        near = difflib.get_close_matches(name[:50].lower(), known, n=1, cutoff=0.5)
        expected = "the name of a time zone, such as UTC or Europe/Berlin"
        if near:
            expected += f"; did you mean {known[near[0]]!r}?"
        raise PydanticCustomError("timezone", "{expected}", {"expected": expected}) from None
    return name


def _duration(text: str) -> str:
    match = _DURATION.fullmatch(text)
    if match is None or not int(match[1]):
        raise PydanticCustomError("duration", "a time such as '90s', '30min', '2h' or '1d'")
    return text


class ScheduleOptions(_Options):
    """When a job is run. Each time is an occurrence, with a run of its own.

    cron:            five fields, or @hourly, @daily, …; six, the first for seconds, where the scheduler
                     knows them (`jacjobs schedule serve`, systemd). Of day and weekday either will do, if
                     neither begins with *, as in every cron.
    timezone:        the one that the cron expression means, by its IANA name.
    overlap:         what is done while an earlier occurrence goes on: forbid (this one is skipped), replace
                     (that one is stopped), allow.
    start_deadline:  how late an occurrence may start ("90s", "30min", "2h", "1d"); null: however late.
    """

    cron: Annotated[str, AfterValidator(_cron)]
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    overlap: Literal["forbid", "replace", "allow"] = "forbid"
    start_deadline: Annotated[str, AfterValidator(_duration)] | None = None

    @property
    def expression(self) -> str:
        """The fields, in capitals."""
        return " ".join(ALIASES.get(self.cron.lower(), self.cron).upper().split())

    @property
    def zone(self) -> zoneinfo.ZoneInfo:
        return zoneinfo.ZoneInfo(self.timezone)

    @property
    def deadline(self) -> timedelta | None:
        match = _DURATION.fullmatch(self.start_deadline or "")
        return None if match is None else timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])
