"""How good answers are: exact numbers over lists of answers and of right ones, with bootstrap intervals. No torch.

A metric knows nothing of kinds or models. Sources: F1 of words as SQuAD's; the rest are textbook definitions.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tap_core.seeds import derive_seed

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A name, a direction, and how it is computed: the value of one example (the metric is their mean), those of many
    at once, or that of all."""

    name: str
    higher_is_better: bool
    each: Callable[[Any, Any], float] | None = None
    each_of: Callable[[Sequence[Any], Sequence[Any]], Sequence[float]] | None = None
    of_all: Callable[[Sequence[Any], Sequence[Any]], float] | None = None

    def value(self, answers: Sequence[Any], wanted: Sequence[Any]) -> float:
        """The metric over examples.

        Args:
            answers: The model's answers, one or more.
            wanted: The right answers, as many.

        Returns:
            One number.
        """
        return self._with_interval(answers, wanted, 0)[0]

    def interval(self, answers: Sequence[Any], wanted: Sequence[Any]) -> tuple[float, float]:
        """Bootstrap interval of 95 %: the test examples drawn anew a thousand times, with a fixed seed.

        Args:
            answers: The model's answers, one or more.
            wanted: The right answers, as many.

        Returns:
            Its lower and its upper end.
        """
        return self._with_interval(answers, wanted, RESAMPLES)[1]

    def better(self, one: float, other: float) -> bool:
        """Compare two values of this metric.

        Args:
            one: A value.
            other: Another.

        Returns:
            Whether ``one`` is better; equal is not.
        """
        return one > other if self.higher_is_better else one < other

    def _values(self, answers: Sequence[Any], wanted: Sequence[Any]) -> Sequence[float]:
        if self.each_of is not None:
            return self.each_of(answers, wanted)
        assert self.each is not None
        return [self.each(a, w) for a, w in zip(answers, wanted, strict=True)]

    def _with_interval(
        self, answers: Sequence[Any], wanted: Sequence[Any], resamples: int
    ) -> tuple[float, tuple[float, float]]:
        count = len(wanted)
        generator = np.random.default_rng(derive_seed("bootstrap", self.name, count))
        if self.each is not None or self.each_of is not None:
            values = np.asarray(self._values(answers, wanted), np.float64)
            drawn = [values[generator.integers(0, count, count)].mean() for _ in range(resamples)]
            return float(np.mean(values)), _quantiles(drawn)
        assert self.of_all is not None
        drawn = []
        for _ in range(resamples):
            rows = generator.integers(0, count, count)
            drawn.append(self.of_all([answers[i] for i in rows], [wanted[i] for i in rows]))
        return float(self.of_all(answers, wanted)), _quantiles(drawn)


def _quantiles(values: Sequence[float]) -> tuple[float, float]:
    if not values:
        return (float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 over the bags of lower-case words; 1 if both are empty."""
    answer_words, reference_words = word_bag(answer), word_bag(reference)
    if not answer_words or not reference_words:
        return float(answer_words == reference_words)
    common = sum((answer_words & reference_words).values())
    return 2 * common / (sum(answer_words.values()) + sum(reference_words.values()))


def word_bag(text: str) -> Counter[str]:
    """How often each lower-case word occurs."""
    return Counter(re.findall(r"\w+", text.lower()))


def macro_f1(answers: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    """Mean over classes of 2 TP / (2 TP + FP + FN); classes that are neither answered nor wanted are left out.

    An answer is the classes that it names. 1 if there is no class at all.
    """
    both, either = Counter[int](), Counter[int]()
    for answer, right in zip(answers, wanted, strict=True):
        both.update(set(answer) & set(right))
        either.update(set(answer))
        either.update(set(right))
    return float(np.mean([2 * both[c] / either[c] for c in sorted(either)])) if either else 1.0


def r_squared(answers: Sequence[float], wanted: Sequence[float]) -> float:
    """1 - sum of squared errors / sum of squared deviations from the mean; 0 where all wanted numbers are equal, but 1
    if every answer is right, both but for rounding."""
    answered, right = np.asarray(answers, np.float64), np.asarray(wanted, np.float64)
    errors, spread = np.square(answered - right).sum(), np.square(right - right.mean()).sum()
    least = len(right) * rounding(right) ** 2
    if spread <= least:
        return float(errors <= least)
    return float(1 - errors / spread)


def rounding(numbers: np.ndarray) -> float:
    """How far the mean of float64 numbers may be from what it would be without rounding."""
    return float(len(numbers) * np.finfo(np.float64).eps * np.abs(numbers).max())


def _squared_error(answer: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.square(answer.astype(np.float64) - wanted).mean())


ACCURACY = Metric("accuracy", True, each=lambda answer, wanted: float(answer == wanted))
MSE = Metric("mse", False, each=_squared_error)
TOKEN_F1 = Metric("token_f1", True, each=token_f1)
MACRO_F1 = Metric("macro_f1", True, of_all=macro_f1)
R_SQUARED = Metric("r2", True, of_all=r_squared)
MAE = Metric("mae", False, each=lambda answer, wanted: abs(answer - wanted))
