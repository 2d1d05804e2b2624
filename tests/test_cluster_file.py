"""cluster.yaml at the root is what Ray's cluster launcher accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parent.parent


def validated(content: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config: dict[str, Any] = prepare_config(content)
    validate_config(config)
    return config


def test_the_launcher_accepts_it() -> None:
    config = validated(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    assert config["cluster_name"]


def test_the_check_notices_an_unknown_key() -> None:
    content = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError, match="workres"):
        validated({**content, "workres": 3})
