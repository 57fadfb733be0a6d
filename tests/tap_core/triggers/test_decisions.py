"""When a trigger fires on losses of which the right decision is known, and what selection chooses."""

import numpy as np
import pytest

from tap_core.algorithms.selection import select
from tap_core.algorithms.tap import TapSettings
from tap_core.settings.federation import TaskConfig
from tap_core.triggers import DECISIONS
from tap_core.triggers.base import Evidence
from tap_core.triggers.paired import better

LABEL = TaskConfig(name="label", kind="image_classification", inputs=("image",), classes=("a", "b"))
DRAWS, EXAMPLES = 1000, 64


def losses(seed: int, lead: float) -> tuple[np.ndarray, np.ndarray]:
    """Of w and x on the same examples: they differ by noise with a standard deviation of 1, and w is better by ``lead``
    standard errors of the difference. What makes an example hard is in both, as it is in real ones."""
    random = np.random.default_rng(seed)
    hard = random.gamma(1.0, 3.0, EXAMPLES)
    apart = random.normal(lead / np.sqrt(EXAMPLES), 1, EXAMPLES)
    return hard, hard + apart


def rate(lead: float, k: float) -> float:
    """How often `paired` fires."""
    decision = DECISIONS["paired"](TapSettings(k=k))
    return float(
        np.mean([decision.replaces(Evidence(LABEL, 0.0, 0.0, lambda s=s: losses(s, lead))) for s in range(DRAWS)])
    )


def test_identical_models_fire_rarely_and_a_better_one_is_seen() -> None:
    assert 0.02 < rate(0, 1.64) <= 0.07
    assert 0.20 <= rate(1, 1.64) < 0.35
    assert 0.12 < rate(0, 1) < 0.20 and rate(3, 1) > 0.95 and rate(-3, 1) < 0.01
    assert 0.45 < rate(0, 0) < 0.55


def test_the_pairing_is_what_shows_a_small_difference() -> None:
    """Against the scatter between examples a lead of three standard errors of the difference is nothing."""
    ours, theirs = losses(0, 3)
    spread = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / EXAMPLES)
    assert theirs.mean() - ours.mean() < spread and better(ours, theirs, 1)


def test_equal_scores_and_too_few_show_nothing() -> None:
    same = np.arange(8.0)
    assert (
        not better(same, same, 0) and not better(np.zeros(1), np.ones(1), 0) and not better(np.empty(0), np.empty(0), 1)
    )


def test_always_fires_whatever_it_sees() -> None:
    assert DECISIONS["always"](TapSettings()).replaces(Evidence(LABEL, 2.0, 1.0, lambda: pytest.fail("not needed")))


def test_only_paired_needs_held_out_examples() -> None:
    assert [name for name in ("fixed", "paired", "always") if DECISIONS[name].needs_held_out] == ["paired"]


def test_selection_never_returns_the_worse_and_prefers_the_simpler() -> None:
    """Candidates that are one model but for noise: the first stays in most draws, and what is chosen is never worse."""
    stayed = 0
    for seed in range(DRAWS):
        random = np.random.default_rng(seed)
        hard = random.gamma(1.0, 3.0, EXAMPLES)
        found = {name: hard + random.normal(0, 1, EXAMPLES) for name in ("received", "teacher", "distilled")}
        chosen = select(found)
        assert found[chosen].mean() <= found["received"].mean()
        stayed += chosen == "received"
    assert 0.6 < stayed / DRAWS < 0.85  # each of two others is luckier by one standard error in a sixth of the draws
    clear = {"received": hard, "teacher": hard - 1, "distilled": hard - 1 + 1e-9}
    assert select(clear) == "teacher"
