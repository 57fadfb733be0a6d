"""A model of all four miniature tasks, shared by the tests that do not train it."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture(scope="session")
def mini_model(mini_config: Callable[..., Any]) -> Callable[..., Any]:
    """Build a fresh model: ``mini_model("colour", "ask", lora={"dropout": 0.0})``; all tasks if none is named."""
    from tap_core.foundations import load_foundation
    from tap_core.model.tap_model import build_model

    def make(*tasks: str, **tables: Any) -> Any:
        config = mini_config(**tables)
        model = build_model(config, config.tasks_named(tasks or config.tasks), load_foundation(config.foundation))
        model.preprocessor.facts["shade"] = {"mean": 80.0, "std": 4.0}  # as a fit of its train split would say
        return model

    return make


@pytest.fixture
def randomise() -> Callable[..., None]:
    """Fill a parameter set with seeded noise, so that adapters are not at their zero start."""
    import torch

    def fill(model: Any, parameter_set: str, seed: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.trainable(parameter_set).values():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)

    return fill
