"""Greedy and beam search: the cache changes nothing, and more beams never find a worse answer."""

from collections.abc import Callable
from typing import Any

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


def test_beams_find_answers_at_least_as_likely(mini_model: Make, mini_examples: Make, randomise: Make) -> None:
    model, decoder, tokens, mask = setup(mini_model, mini_examples, randomise)
    start, end = model.preprocessor.special.start, model.preprocessor.special.end
    greedy = generate(decoder, tokens, mask, model.embeddings, start=start, end=end)
    beam = generate(decoder, tokens, mask, model.embeddings, start=start, end=end, beams=4)

    def total(answers: list[list[int]]) -> float:
        return sum(score(model, decoder, tokens[i : i + 1], mask[i : i + 1], row, end) for i, row in enumerate(answers))

    assert total(beam) >= total(greedy) - 1e-5
