"""Text generation: an answer, word by word, from any inputs (visual question answering, captioning, ...)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_core.examples import Example
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.metrics import TOKEN_F1, Metric, token_f1, word_bag

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import EvaluationConfig, TaskConfig
    from tap_core.tasks.decoders import HeadSizes

IGNORED = -100
"""Label of a padding token: no loss is computed there."""


class TextGeneration(TaskKind):
    """Teacher forcing, cross-entropy per token, padding ignored. A target is a text."""

    name = "text_generation"
    words = "text generation"
    generates_text = True
    margin = 0.01
    metrics = (TOKEN_F1,)
    loss_unit = "nats per token"

    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """Answer tokens, int64 (n, length + 1): the start token, words, the end token, then ``IGNORED``."""
        return preprocessor.answers([str(e.target) for e in examples], task.length, IGNORED)

    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        from tap_core.tasks.decoders import TextDecoder

        width, heads = min(sizes.text_width, sizes.hidden), sizes.heads
        while width % heads:
            heads -= 1
        return TextDecoder(sizes.hidden, width, heads, sizes.text_layers, task.length, sizes.words)

    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """Mean cross-entropy over an answer's tokens: logits (n, words, V) and tokens (n, words + 1)."""
        from torch.nn import functional as F

        labels = target[:, 1:]
        word_losses = F.cross_entropy(output.float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
        return _mean_over_words(word_losses, labels)

    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """The mean over the answer's tokens."""
        from tap_core.tasks.losses import kl_divergence

        return _mean_over_words(kl_divergence(student, teacher, temperature), target[:, 1:])

    def uncertainty(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """The mean over the answer's tokens."""
        from tap_core.tasks.losses import entropy

        return _mean_over_words(entropy(output), target[:, 1:])

    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        raise NotImplementedError("answers of this kind come from search, word by word")

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        """The most frequent answer, the best constant bag of words, and the input text itself."""
        commonest = Counter(train).most_common(1)[0][0]
        choices = {
            "most frequent answer": [commonest] * len(test),
            "constant bag of words": [best_bag(train)] * len(test),
        }
        if "text" in task.inputs:
            choices["the input"] = [e.text or "" for e in test]
        return choices

    def more_metrics(self, settings: "EvaluationConfig") -> tuple[Metric, ...]:
        from tap_core.tasks.text_metrics import bert_score, meteor

        more = [meteor()] if settings.meteor else []
        return (*more, *([bert_score(settings.bert_model)] if settings.bert_model else []))

    def line(self, facts: Mapping[str, Any]) -> str:
        return str(facts["answer"])


def best_bag(answers: Sequence[str]) -> str:
    """Words that, given as every answer, have the best mean F1 on ``answers``: added by frequency while it rises."""
    counts = Counter(word for answer in answers for word in word_bag(answer))
    bag, best = "", -1.0
    for word, _ in counts.most_common(50):
        longer = f"{bag} {word}".strip()
        score = float(np.mean([token_f1(longer, answer) for answer in answers]))
        if score <= best:
            break
        bag, best = longer, score
    return bag


def _mean_over_words(word_losses: "Tensor", labels: "Tensor") -> "Tensor":
    real = (labels != IGNORED).to(word_losses.dtype)
    return (word_losses * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
