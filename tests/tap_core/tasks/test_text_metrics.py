"""METEOR and BERTScore: numbers by hand, empty texts, and what is said where something is missing."""

import json
import sys
from pathlib import Path

import pytest

from tap_core.errors import UsageError
from tap_core.settings.federation import EvaluationConfig, TaskConfig
from tap_core.tasks import text_metrics
from tap_core.training.evaluation import score


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "heart"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), model_max_length=32).save_pretrained(tmp_path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 2}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    return tmp_path


def test_meteor_without_synonyms_is_its_formula() -> None:
    """Two of three words match in one chunk: F = 10 P R / (R + 9 P), penalty (1/2)^3 / 2."""
    pytest.importorskip("nltk")
    if not (text_metrics.DEBIAN_WORDNET / "data.noun").is_file():
        pytest.skip("WordNet is not installed")
    metric = text_metrics.meteor()
    precision, recall = 1.0, 2 / 3
    mean = precision * recall / (0.9 * precision + 0.1 * recall)
    assert metric.value(["big red"], ["Big red heart"]) == pytest.approx(mean * (1 - 0.5 * (1 / 2) ** 3))
    assert metric.value(["", "", "a"], ["", "a", ""]) == pytest.approx(1 / 3)
    assert metric.value(["auto"], ["car"]) > 0 == metric.value(["tree"], ["car"])  # a synonym, and none


def test_meteor_without_nltk_or_wordnet_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text_metrics.meteor.cache_clear()
    monkeypatch.setattr(text_metrics, "DEBIAN_WORDNET", tmp_path)
    pytest.importorskip("nltk")
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    with pytest.raises(UsageError, match="apt install wordnet-base"):
        text_metrics.meteor()
    monkeypatch.setitem(sys.modules, "nltk.translate.meteor_score", None)
    with pytest.raises(UsageError, match=r"pip install 'tap-edge\[metrics\]'"):
        text_metrics.meteor()


def test_bert_score_names_its_model_and_bears_empty_texts(tiny_bert: Path) -> None:
    pytest.importorskip("bert_score")
    metric = text_metrics.bert_score(str(tiny_bert))
    assert metric.name == f"bert_score ({tiny_bert.name})"
    same, other = metric.value(["red heart"], ["red heart"]), metric.value(["blue"], ["red heart"])
    assert same == pytest.approx(1, abs=1e-5) and other < 0.99
    assert metric.value(["", "", "red"], ["", "red", "red"]) == pytest.approx((1 + 0 + 1) / 3, abs=1e-5)


def test_they_stand_beside_token_f1_where_the_settings_ask(tiny_bert: Path) -> None:
    pytest.importorskip("bert_score")
    task = TaskConfig(name="t", kind="text_generation", inputs=("text",))
    found = score(task, ["red"], ["red"], EvaluationConfig(bert_model=str(tiny_bert)))
    assert list(found.values) == ["token_f1", f"bert_score ({tiny_bert.name})"]
    assert list(score(task, ["red"], ["red"], EvaluationConfig()).values) == ["token_f1"]


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("bert_score")
    (tmp_path / "config").write_text(json.dumps({}))
    with pytest.raises(UsageError, match=r"is no directory with a model"):
        text_metrics.bert_score(str(tmp_path))
