"""The launcher files are what Ray's cluster launcher accepts, and what the README says of them."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.conftest import JOBS

ROOT = Path(__file__).parent.parent
FILES = ["cluster.yaml", "cluster-onpremise.yaml"]
COMMANDS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
]


def content(name: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return read


def validated(content: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(content)
    validate_config(config)
    return config


def pins(name: str) -> dict[str, str]:
    """What the commands install, and of which version; without extras."""
    commands = " ".join(command for key in COMMANDS for command in content(name).get(key, []))
    installed = re.findall(r"'([^']+)'", " ".join(re.findall(r"pip install ([^|&;]*)", commands)))
    exactly = [re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?==([\w.]+)", one) for one in installed]
    assert all(exactly), installed
    return {match[1]: match[2] for match in exactly if match is not None}


def started(name: str, role: str) -> dict[str, str | None]:
    """The options of a role's `ray start`."""
    (command,) = [one for one in content(name)[f"{role}_start_ray_commands"] if "ray start" in one]
    return {key: value or None for key, value in re.findall(r"--([\w-]+)(?:=(\S+))?", command)}


@pytest.mark.parametrize("name", FILES)
def test_the_launcher_accepts_it(name: str) -> None:
    config = validated(content(name))
    assert config["cluster_name"] == "jacjobs"
    assert config["max_workers"] > 0


def test_the_check_notices_an_unknown_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="workres"):
        validated({**content("cluster.yaml"), "workres": 3})


def test_the_check_notices_an_unknown_key_of_a_node_type() -> None:
    wrong = content("cluster.yaml")
    wrong["available_node_types"]["gpu"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validated(wrong)


@pytest.mark.parametrize("name", FILES)
def test_it_installs_this_version_and_what_it_is_tested_with(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    tested = dict(line.split("==") for line in lines if "==" in line)
    installed = pins(name)
    assert installed.pop("jacjobs") == project["version"]
    assert installed.keys() >= {"ray", "torch"}
    assert installed == {package: tested[package] for package in installed}


def test_the_head_computes_nothing_and_the_others_have_gpus() -> None:
    types = dict(content("cluster.yaml")["available_node_types"])
    head = types.pop(content("cluster.yaml")["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    options = started("cluster.yaml", "head")
    assert (options["num-cpus"], options["num-gpus"]) == ("0", "0")
    assert not head["node_config"]["InstanceType"].startswith(("g", "p"))
    assert types
    for kind in types.values():
        assert kind["node_config"]["InstanceType"].startswith(("g", "p"))
        assert kind["resources"]["GPU"] >= 1
        assert kind["resources"]["CPU"] >= kind["resources"]["GPU"]
        assert kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_nodes_come_and_go_within_limits() -> None:
    config = validated(content("cluster.yaml"))
    kinds = {name: kind for name, kind in config["available_node_types"].items() if name != "head"}
    assert config["head_node_type"] == "head"
    for kind in kinds.values():
        assert 0 == kind["min_workers"] < kind["max_workers"] <= config["max_workers"]
    assert config["idle_timeout_minutes"] > 0
    assert config["provider"]["cache_stopped_nodes"] is False


def test_the_machines_that_are_there_are_all_used() -> None:
    config = validated(content("cluster-onpremise.yaml"))
    (kind,) = config["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(config["provider"]["worker_ips"]) == 2


@pytest.mark.parametrize("name", FILES)
def test_the_head_scales_the_cluster_and_the_others_find_it(name: str) -> None:
    head, worker = started(name, "head"), started(name, "worker")
    assert head["autoscaling-config"] == "~/ray_bootstrap_config.yaml"  # where `ray up` puts it
    assert worker["address"] == f"$RAY_HEAD_IP:{head['port']}"
    assert head["metrics-export-port"] == worker["metrics-export-port"]
    assert "dashboard-host" not in head  # it answers this host alone; `ray dashboard` forwards its port


@pytest.mark.parametrize("name", FILES)
def test_every_node_asks_for_the_token(name: str) -> None:
    config = content(name)
    assert config["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert any("RAY_AUTH_MODE=token" in command for command in config["setup_commands"])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("key", COMMANDS)
def test_commands_are_shell(name: str, key: str) -> None:
    for command in content(name).get(key, []):
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def test_ray_start_knows_the_options() -> None:
    from ray.scripts.scripts import start

    known = {name.removeprefix("--") for option in start.params for name in option.opts}
    for name in FILES:
        for role in ("head", "worker"):
            assert started(name, role).keys() <= known


def test_the_readme_and_the_job_refer_to_it() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## On a cluster\n")[2].partition("\n## ")[0]
    for words in ("ray up cluster.yaml", "--address http://localhost:8265", *FILES):
        assert words in section
    assert "cluster.yaml" in (JOBS / "digits.yaml").read_text(encoding="utf-8")
