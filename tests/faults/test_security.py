"""What strangers send runs no code: neither looking at a dataset nor anything else in the package executes
what it reads. SECURITY.md makes the promises; these tests hold them, and those of `test_forged_*.py` that
forged parts, plans and job files end with a sentence, in bounded time and memory.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jacjobs
from jacjobs.jobspec import load_problem, read_job
from jacjobs.planning.options import ClusterOptions
from tests.faults.forging import cli

PACKAGE = Path(jacjobs.__file__).parent


@pytest.mark.parametrize("command", ["show", "verify", "plan", "status", "list"])
def test_a_command_that_looks_at_a_run_does_not_import_its_problem(
    command: str, strangers_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = strangers_run.parent / "executed"
    path = "." if command == "list" else "run"
    for arguments in ([command, path], [command, path, "--json"]):
        assert cli(monkeypatch, *arguments) == 0
        assert not marker.exists()


def test_reading_does_not_import_the_problem_and_building_it_does(strangers_run: Path) -> None:
    """So the marker shows what it is to show."""
    marker = strangers_run.parent / "executed"
    J = jacjobs.open(strangers_run)
    assert J.record.job is not None
    assert J.record.job["folder"] == str(strangers_run.parent)
    J.to_numpy(), J[0], J @ np.ones(3, np.float32), J.gram(), J.dataset().to_table(), J.tree()
    assert jacjobs.verify(strangers_run).sound
    assert not marker.exists()
    with pytest.raises(SystemExit):
        load_problem(read_job(strangers_run.parent / "job.yaml", []), strangers_run.parent)
    assert marker.exists()


AUDITED = """
import sys, numpy as np, jacjobs, pickle
from jacjobs.store.verify import verify_run
seen = []
WATCHED = ("pickle.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect",
           "socket.bind", "ctypes.dlopen", "os.remove", "os.rename", "os.mkdir", "shutil.")
def hook(event, arguments):
    if on and event.startswith(WATCHED):
        seen.append((event, str(arguments)))
    elif on and event == "open" and arguments[2] & 0o3:
        seen.append((event, str(arguments)))
    elif on and event == "exec" and "{folder}" in getattr(arguments[0], "co_filename", ""):
        seen.append((event, str(arguments)))
def read():
    J = jacjobs.open("{folder}/run")
    J.summary(), J.to_numpy(), J[0], J @ np.ones(3, np.float32), J.gram(), J.dataset().to_table(), J.tree()
    assert verify_run("{folder}/run").sound
on = False
sys.addaudithook(hook)
read()  # what is imported late comes in
on = True
read()
assert not seen, seen
pickle.loads(pickle.dumps(np.float32))
exec(compile("1", "{folder}/p.py", "exec"))
open("{folder}/a file", "w").close()
assert [event for event, _ in seen] == ["pickle.find_class", "exec", "open"], seen
"""


def test_the_interpreter_sees_no_pickle_no_process_no_connection_and_nothing_written(
    strangers_run: Path,
) -> None:
    """By Python's audit hooks; the last lines show that they see it."""
    code = AUDITED.replace("{folder}", str(strangers_run.parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_local_ray_has_no_dashboard_and_its_tokens_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from jacjobs.run.cluster.session import session

    given: dict[str, Any] = {}
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: given.update(options))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = dict(os.environ)
    with session(ClusterOptions(workers=1), 1 << 20):
        assert given["include_dashboard"] is False
        assert given["address"] == "local"
        assert not given.keys() & {"dashboard_host", "_node_ip_address"}
        assert dict(os.environ) == before


RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "cloudpickle.load",
    "cloudpickle.loads",
    "marshal.loads",
    "marshal.load",
    "shelve.open",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
    "yaml.UnsafeLoader",
    "yaml.FullLoader",
    "yaml.Loader",
    "np.load",
    "numpy.load",
    "torch.load",
    "os.system",
    "os.popen",
    "subprocess.run",
    "subprocess.Popen",
    "runpy.run_path",
    "description.loader.exec_module",
    "importlib.import_module",
    "__import__",
}
ALLOWED = {
    "__init__.py": {"importlib.import_module"},  # of jacjobs.api, when it is first asked for
    "autodiff/jacobian.py": {"compile"},  # the option of that name
    "run/cluster/actors.py": {"cloudpickle.loads"},  # of a problem, on its way to its workers
    "run/unpacking.py": {"pickle.Unpickler", "torch.load"},  # the same, onto a device
    "store/folder.py": {"np.load"},  # of a pattern, with allow_pickle=False
    "scheduling/serve.py": {"subprocess.Popen"},  # of this Python: `jacjobs submit`, without a shell
    "jobspec.py": {"description.loader.exec_module", "importlib.import_module"},  # the job's problem
}


def uses(source: str) -> set[str]:
    """Of `RUNS_CODE`; and names that are imported from such modules."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute | ast.Name):
            found.add(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{(node.module or '').split('.')[-1]}.{alias.name}" for alias in node.names}
    return found & RUNS_CODE


def test_nothing_in_the_package_can_execute_what_it_reads() -> None:
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        source = path.read_text(encoding="utf-8")
        assert uses(source) == ALLOWED.get(name, set()), name
        assert not re.search(r"RAY_AUTH_MODE\W+disabled", source), name
        assert "allow_pickle=True" not in source, name


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(f)",
        "from yaml import unsafe_load",
        "eval(x)",
        "x = np.load",
        "torch.load(f)",
    ],
)
def test_what_would_execute_is_recognised(source: str) -> None:
    assert uses(source)
