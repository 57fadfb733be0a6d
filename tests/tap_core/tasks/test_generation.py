"""Greedy and beam search: the cache changes nothing, and beams find what a search of all answers finds."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tap_core.tasks.generation import generate

Make = Callable[..., Any]


def setup(mini_model: Make, mini_examples: Make, randomise: Make) -> Any:
    model = mini_model("ask").eval()
    randomise(model, "personal", seed=11)
    batch = model.preprocessor.batch(model.tasks["ask"], mini_examples("ask").train[:5])
    with torch.no_grad():
        tokens, mask, _ = model.encode(batch, "personal")
    return model, model.decoder("ask", "personal"), tokens, mask


def score(model: Any, decoder: Any, tokens: torch.Tensor, mask: torch.Tensor, row: list[int], end: int) -> float:
    """Mean log-probability per word of an answer, without a cache."""
    words = row + ([end] if len(row) < decoder.length else [])
    given = torch.tensor([[model.preprocessor.special.start, *words[:-1]]])
    with torch.no_grad():
        logits, _ = decoder(tokens, mask, given, model.embeddings)
    return float(torch.log_softmax(logits[0], -1)[range(len(words)), words].mean())


def test_greedy_with_the_cache_is_greedy_without(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    model, decoder, tokens, mask = setup(mini_model, mini_examples, randomise)
    start, end = model.preprocessor.special.start, model.preprocessor.special.end
    answers = generate(decoder, tokens, mask, model.embeddings, start=start, end=end)
    assert len(answers) == 5 and max(len(a) for a in answers) > 1
    for i, found in enumerate(answers):
        words = [start]
        for _ in range(decoder.length):
            with torch.no_grad():
                logits, _ = decoder(tokens[i : i + 1], mask[i : i + 1], torch.tensor([words]), model.embeddings)
            words.append(int(logits[0, -1].argmax()))
            if words[-1] == end:
                break
        assert found == [w for w in words[1:] if w != end]


def test_a_word_is_foretold_from_the_words_before_it_alone(
    mini_model: Make, mini_examples: Make, randomise: Make
) -> None:
    """In training all words of an answer are given at once, and none may see what it is asked for."""
    model, decoder, tokens, mask = setup(mini_model, mini_examples, randomise)
    words = torch.tensor([[model.preprocessor.special.start, 5, 6, 7]] * len(tokens))
    others = words.clone()
    others[:, 2:] = torch.tensor([9, 10])
    with torch.no_grad():
        (one, _), (other, _) = (decoder(tokens, mask, given, model.embeddings) for given in (words, others))
    assert torch.allclose(one[:, :2], other[:, :2], atol=1e-5)
    assert not torch.allclose(one[:, 2:], other[:, 2:], atol=1e-5)


def test_beams_find_answers_at_least_as_likely(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    model, decoder, tokens, mask = setup(mini_model, mini_examples, randomise)
    start, end = model.preprocessor.special.start, model.preprocessor.special.end
    greedy = generate(decoder, tokens, mask, model.embeddings, start=start, end=end)
    beam = generate(decoder, tokens, mask, model.embeddings, start=start, end=end, beams=4)

    def total(answers: list[list[int]]) -> float:
        return sum(score(model, decoder, tokens[i : i + 1], mask[i : i + 1], row, end) for i, row in enumerate(answers))

    assert total(beam) >= total(greedy) - 1e-5


VOCABULARY, LENGTH, EXAMPLES, START, END = 4, 3, 8, 0, 1
SEEDS = (1, 2, 3)


class Lottery:
    """A decoder in which every history of words has a chance of its own for each next word: all its answers can be
    tried, and one that is told another history puts out something else. Its cache is the history."""

    length = LENGTH

    def __init__(self, seed: int) -> None:
        self.logits = np.random.default_rng(seed).normal(0, 1.5, (EXAMPLES, *[VOCABULARY + 1] * LENGTH, VOCABULARY))

    def __call__(self, tokens: Any, mask: Any, words: Any, embeddings: Any, past: Any = None) -> Any:
        """As `TextDecoder.forward`. ``tokens``: the example's number, (B, 1, 1)."""
        history = words if past is None else torch.cat([past[0][0, :, 0, :, 0], words], dim=1)
        rows = [self.after(int(e), row[1:]) for e, row in zip(tokens[:, 0, 0], history.tolist(), strict=True)]
        cache = history[None, :, None, :, None]  # (layers, B, heads, words, width)
        return torch.tensor(np.array(rows))[:, None], (cache, cache)

    def after(self, example: int, history: list[int]) -> Any:
        return self.logits[(example, *history, *[VOCABULARY] * (LENGTH - len(history)))]

    def log_likelihood(self, example: int, words: Sequence[int]) -> float:
        """log p of a whole answer."""
        chances = [self.after(example, list(words[:n])) for n in range(len(words))]
        return float(sum(c[word] - np.log(np.exp(c).sum()) for c, word in zip(chances, words, strict=True)))

    def search(self, beams: int) -> list[list[int]]:
        tokens = torch.arange(EXAMPLES, dtype=torch.float64).reshape(-1, 1, 1)
        mask = torch.ones(EXAMPLES, 1, dtype=torch.bool)
        decoder: Any = self
        return generate(decoder, tokens, mask, torch.empty(0), start=START, end=END, beams=beams)


def whole_answers() -> list[tuple[int, ...]]:
    """Every answer, the end token included unless there is no room for it."""
    others = [word for word in range(VOCABULARY) if word != END]
    ended = [(*words, END) for n in range(LENGTH) for words in itertools.product(others, repeat=n)]
    return ended + list(itertools.product(others, repeat=LENGTH))


def spoken(words: Sequence[int]) -> list[int]:
    return [word for word in words if word != END]


@pytest.mark.parametrize("seed", SEEDS)
def test_with_room_for_every_hypothesis_the_likeliest_of_all_answers_per_word_is_found(seed: int) -> None:
    decoder = Lottery(seed)
    for example, found in enumerate(decoder.search(VOCABULARY**LENGTH)):
        best = max(whole_answers(), key=lambda words: decoder.log_likelihood(example, words) / len(words))
        assert found == spoken(best)


@pytest.mark.parametrize("beams", [1, 2, 3, 7])
@pytest.mark.parametrize("seed", SEEDS)
def test_few_beams_find_what_a_search_without_a_cache_finds(seed: int, beams: int) -> None:
    decoder = Lottery(seed)
    for example, found in enumerate(decoder.search(beams)):
        kept: list[tuple[int, ...]] = [()]
        for _ in range(LENGTH):
            grown = [words for words in kept if END in words]
            grown += [(*words, word) for words in kept if END not in words for word in range(VOCABULARY)]
            kept = sorted(grown, key=lambda words: -decoder.log_likelihood(example, words))[:beams]
        best = max(kept, key=lambda words: decoder.log_likelihood(example, words) / len(words))
        assert found == spoken(best)


def test_the_likeliest_answer_is_another_one_without_the_length_and_for_the_greedy() -> None:
    """Else the tests above would not see whether the length counts, nor whether the beams do anything."""
    without_length = greedy_misses = 0
    for seed in SEEDS:
        decoder = Lottery(seed)
        for example, (found, greedy) in enumerate(zip(decoder.search(64), decoder.search(1), strict=True)):
            without_length += found != spoken(max(whole_answers(), key=lambda w: decoder.log_likelihood(example, w)))
            greedy_misses += found != greedy
    assert without_length >= 3 and greedy_misses >= 3
