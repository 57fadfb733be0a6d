"""The WordPiece vocabulary of `tiny-flava`, and its files in the form that AutoTokenizer reads. Knows text only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(5)


def train_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """A lower-case WordPiece tokenizer of at most ``size`` entries that wraps a text as [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, min_frequency=2, limit_alphabet=200, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer numbers letters in a random order: number all words anew, so that equal texts give equal ids.
    words = sorted(set(tokenizer.get_vocab()) - set(SPECIAL))
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *words])}
    tokenizer.model = models.WordPiece(vocabulary, unk_token="[UNK]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, positions: int) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and vocab.txt."""
    roles = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "do_lower_case": True,
        "model_max_length": positions,
        **roles,
    }
    _write_json(directory / "tokenizer_config.json", config)
    _write_json(directory / "special_tokens_map.json", roles)
    words = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    (directory / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")


def save_preprocessor(directory: Path, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Write preprocessor_config.json: how an image becomes `pixel_values`."""
    config = {
        "image_processor_type": "FlavaImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": False,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
        "do_convert_rgb": True,
    }
    _write_json(directory / "preprocessor_config.json", config)


def _write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
