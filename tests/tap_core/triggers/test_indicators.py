"""What each indicator says of a set, against the definition written out."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.algorithms.device import Local
from tap_core.components import components_of_task
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.training.runtime import make_accelerator
from tap_core.triggers import INDICATORS, ComponentIndicator, ExampleIndicator
from tap_core.triggers.alignment import cka, hsic, pseudo_values

Make = Callable[..., Any]
TASKS = ("colour", "letters", "redraw", "ask", "shade", "marks")


@pytest.fixture
def local(mini_config: Make, mini_model: Make, mini_examples: Make, randomise: Make) -> Make:
    def make(*tasks: str) -> Local:
        model = mini_model(*tasks)
        for seed, name in enumerate(("federated", "personal")):
            randomise(model, name, seed)
        data = {task: mini_examples(task, train=4, test=0, decision=9) for task in tasks}
        return Local(mini_config(), "d", model, data, make_accelerator(Runtime(device="cpu", threads=1), 1))

    return make


@pytest.mark.parametrize("name", ["loss", "error", "uncertainty", "alignment"])
@pytest.mark.parametrize("task", TASKS)
def test_every_indicator_scores_each_example_of_both_sets(local: Make, name: str, task: str) -> None:
    device = local(task)
    scores = [device.scores(INDICATORS[name](), s, device.model.tasks[task]) for s in ("federated", "personal")]
    assert all(one.shape == (9,) and one.dtype == np.float64 and np.isfinite(one).all() for one in scores)
    assert not np.array_equal(*scores)
    again = device.scores(INDICATORS[name](), "federated", device.model.tasks[task])
    assert np.array_equal(again, scores[0])  # eval mode: no dropout


def test_an_indicator_is_of_examples_or_of_components_and_can_do_all_that_it_offers() -> None:
    for name, indicator in INDICATORS.items():
        assert issubclass(indicator, ExampleIndicator) != issubclass(indicator, ComponentIndicator), name
        assert hasattr(indicator, "gains") == issubclass(indicator, ComponentIndicator)
        assert hasattr(indicator, "scores") == issubclass(indicator, ExampleIndicator)
        assert not inspect.isabstract(indicator)
    assert [name for name in INDICATORS if issubclass(INDICATORS[name], ComponentIndicator)] == ["gradient"]


def test_the_error_of_a_class_is_whether_it_is_wrong_and_of_the_rest_their_loss(local: Make) -> None:
    device = local("colour", "redraw")
    output, target = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.1, 3.0], [1.0, 5.0, 0.0]]), torch.tensor([0, 1, 1])
    assert task_kind("image_classification").error(output, target).tolist() == [0, 1, 0]
    scores = {
        (task, name): device.scores(INDICATORS[name](), "personal", device.model.tasks[task])
        for task in ("colour", "redraw")
        for name in ("loss", "error")
    }
    assert set(scores["colour", "error"]) <= {0.0, 1.0}
    assert np.array_equal(scores["redraw", "error"], scores["redraw", "loss"])


def test_uncertainty_is_the_entropy_of_the_prediction() -> None:
    def entropy(p: Any) -> Any:
        return -(p * p.log()).sum(-1)

    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(
        task_kind("text_classification").uncertainty(logits, torch.zeros(5)), entropy(logits.softmax(-1)), atol=1e-6
    )
    yes = logits.sigmoid()
    each = -(yes * yes.log() + (1 - yes) * (1 - yes).log())
    assert torch.allclose(task_kind("multilabel").uncertainty(logits, torch.zeros(5, 3)), each.mean(1), atol=1e-6)
    words = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(2))
    target = torch.tensor([[1, 2, 3, 0, -100], [1, 2, -100, -100, -100]])
    found = task_kind("text_generation").uncertainty(words, target)
    of_words = entropy(words.softmax(-1))
    assert torch.allclose(found, torch.stack([of_words[0, :3].mean(), of_words[1, :1].mean()]), atol=1e-6)
    pixels = torch.rand(2, 3, 64, 64)
    kind = task_kind("image_generation")
    assert torch.equal(kind.uncertainty(pixels, 1 - pixels), kind.loss(pixels, 1 - pixels))


def test_alignment_is_one_for_what_says_the_same_and_about_nothing_for_noise() -> None:
    random = torch.Generator().manual_seed(3)
    y = torch.randn(40, 3, generator=random).double()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=random).double())[0]
    noise = torch.randn(40, 60, generator=random).double()
    assert pseudo_values(2 * y @ turn, y).mean().item() == pytest.approx(1, abs=1e-6)
    assert abs(pseudo_values(noise, y).mean().item()) < 0.1
    half = pseudo_values(torch.cat([y, noise[:, :3]], 1), y).mean().item()
    assert 0.3 < half < 0.95
    assert cka(torch.zeros(6, 6).double(), (y @ y.T)[:6, :6]).item() == 0


def test_hsic_is_the_unbiased_sum_over_distinct_examples() -> None:
    """Song et al.: the mean over ordered 4-tuples without repetition, here up to the factor n (n - 3)."""
    from itertools import permutations

    random = np.random.default_rng(4)
    k, m = (a @ a.T for a in random.normal(size=(2, 6, 3)))
    n = len(k)
    pairs = np.mean([k[i, j] * m[i, j] for i, j in permutations(range(n), 2)])
    fours = np.mean([k[i, j] * m[q, r] for i, j, q, r in permutations(range(n), 4)])
    threes = np.mean([k[i, j] * m[i, q] for i, j, q in permutations(range(n), 3)])
    assert hsic(torch.tensor(k), torch.tensor(m)).item() / (n * (n - 3)) == pytest.approx(pairs + fours - 2 * threes)


def test_the_gradient_is_what_a_small_step_of_one_component_brings(local: Make) -> None:
    """-<grad_r L(x), w_r - x_r> against the difference quotient, component by component."""
    device = local("colour", "letters")
    task = device.model.tasks["colour"]
    gains = INDICATORS["gradient"]().gains(device, task)
    assert set(gains) == set(components_of_task(task)) and all(gain.shape == (9,) for gain in gains.values())
    x, w, h = device.model.state("personal"), device.model.state("federated"), 1e-3

    def after(component: str, share: float) -> float:
        step = {k: value + np.float32(share) * (w[component][k] - value) for k, value in x[component].items()}
        device.model.load("personal", {**x, component: step})
        return float(device.losses("personal", task).mean())

    slopes = {name: (after(name, -h) - after(name, h)) / (2 * h) for name in gains}
    scale = max(map(abs, slopes.values()))
    assert all(abs(gains[name].mean() - slope) < 0.02 * scale for name, slope in slopes.items())
    assert len({round(gain.mean(), 9) for gain in gains.values()}) > len(gains) / 2
    assert all(p.grad is None for p in device.model.trainable("personal").values())
