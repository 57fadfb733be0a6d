"""Settings of the whole test run, made before any test module imports torch or a tokenizer."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini
import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def mini_foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the miniature FLAVA."""
    return mini.write_mini_foundation(tmp_path_factory.mktemp("mini") / "flava")


@pytest.fixture(scope="session")
def mini_config(mini_foundation: Path) -> Callable[..., Any]:
    """Make a FederationConfig of the four miniature tasks; keyword arguments replace or extend its tables."""
    return lambda **tables: mini.mini_settings(mini_foundation, **tables)


@pytest.fixture(scope="session")
def mini_examples() -> Callable[..., Any]:
    """Make TaskData of one of the miniature tasks: ``mini_examples("colour", train=20, test=8, seed=1)``."""
    return mini.mini_data
