"""METEOR and BERTScore, by the libraries that define them; both need the extra `tap-edge[metrics]`.

They know texts. Which of them are computed is a setting of the federation (`evaluation`).
"""

import functools
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tap_core.errors import UsageError
from tap_core.tasks.metrics import Metric

DEBIAN_WORDNET = Path("/usr/share/wordnet")
"""Where Debian's package `wordnet-base` puts WordNet 3.0."""


@functools.cache
def meteor() -> Metric:
    """METEOR (Banerjee and Lavie, 2005) of nltk, with WordNet's synonyms; words are split at spaces, lower case.

    Raises UsageError if nltk or WordNet is missing.
    """
    try:
        from nltk.translate.meteor_score import single_meteor_score
    except ImportError:
        raise UsageError("evaluation.meteor needs nltk; install it with: pip install 'tap-edge[metrics]'") from None
    wordnet = _wordnet()

    def each(answer: str, wanted: str) -> float:
        answer_words, wanted_words = answer.lower().split(), wanted.lower().split()
        if not answer_words or not wanted_words:
            return float(answer_words == wanted_words)
        return float(single_meteor_score(wanted_words, answer_words, wordnet=wordnet))

    return Metric("meteor", True, each=each)


def _wordnet() -> Any:
    import nltk
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return WordNetCorpusReader(nltk.data.find(name), None)
        except LookupError:
            continue
    if (DEBIAN_WORDNET / "data.noun").is_file():
        if str(DEBIAN_WORDNET) not in nltk.data.path:
            nltk.data.path.append(str(DEBIAN_WORDNET))  # nltk reads nothing outside its own list
        return _without_lexnames(WordNetCorpusReader)(str(DEBIAN_WORDNET), None)
    raise UsageError(
        "evaluation.meteor needs WordNet; install it with: apt install wordnet-base, or: "
        "python -m nltk.downloader wordnet"
    )


def _without_lexnames(reader: Any) -> Any:
    """nltk's reader for a WordNet that lacks the list of the lexicographers' files, whose names METEOR does not use."""

    class Reader(reader):  # type: ignore[misc]
        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d}\tunnamed\t0\n" for number in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """No map from another version's synsets: there is no other."""

    return Reader


@functools.cache
def bert_score(model: str) -> Metric:
    """BERTScore F1 (Zhang et al., 2020) of the package bert-score, without rescaling, at the model's last layer.

    ``model``: directory of a BERT-like model. The metric's name holds the directory's name, since scores of different
    models cannot be compared. Raises UsageError if the package or the model is missing.
    """
    try:
        from bert_score import BERTScorer
    except ImportError:
        raise UsageError(
            "evaluation.bert_model needs bert-score; install it with: pip install 'tap-edge[metrics]'"
        ) from (None)
    directory = Path(model).expanduser()
    if not (directory / "config.json").is_file():
        raise UsageError(
            f"evaluation.bert_model: {model} is no directory with a model; give one that has a config.json"
        )

    @functools.cache
    def load() -> Any:
        """Only when it scores: the metric is asked for before training, to see that it can be had."""
        layers = int(json.loads((directory / "config.json").read_text())["num_hidden_layers"])
        return BERTScorer(model_type=str(directory), num_layers=layers, device="cpu")

    def all_of(answers: Sequence[str], wanted: Sequence[str]) -> list[float]:
        texts = [(a.strip(), w.strip()) for a, w in zip(answers, wanted, strict=True)]
        real = [(a, w) for a, w in texts if a and w]  # the package stumbles over empty texts
        scores = iter(load().score(*map(list, zip(*real, strict=True)))[2].tolist() if real else [])
        return [next(scores) if a and w else float(a == w) for a, w in texts]

    return Metric(f"bert_score ({directory.name})", True, each_of=all_of)
