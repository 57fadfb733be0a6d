"""A miniature foundation of every family, with random weights, in transformers' file format: 32 units wide."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mini

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
IMAGES = {"image_size": 16, "patch_size": 8}


def write_family(name: str, directory: Path) -> Path:
    """A foundation of one of `FAMILIES` in a new directory; the same weights each time."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of a vocabulary smaller than the ids in a default configuration
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        FAMILIES[name](directory)
    return directory


def write_vilt(directory: Path, layers: int = 4) -> None:
    from transformers import ViltConfig, ViltModel

    words = {"vocab_size": len(mini.WORDS), "max_position_embeddings": 32}
    _save(ViltModel(ViltConfig(**SIZES, **IMAGES, **words, num_hidden_layers=layers)), directory)
    _write_words(directory)
    _write_normalisation(directory)


def write_dual(vision: str, text: str) -> Callable[[Path], None]:
    """A directory of two towers, in sub-directories of their own."""

    def write(directory: Path) -> None:
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({"model_type": "dual"}))
        VISION[vision](directory / "vision")
        _write_normalisation(directory / "vision")
        TEXT[text](directory / "text")

    return write


def write_clip(directory: Path) -> None:
    """Both towers in one directory, as CLIP comes."""
    from transformers import CLIPConfig, CLIPModel

    model = directory / "clip"
    text = {**SIZES, **_CLIP_WORDS, "num_hidden_layers": 2}
    vision = {**SIZES, **IMAGES, "num_hidden_layers": 4}
    _save(CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)), model)
    _write_pairs(model)
    _write_normalisation(model)
    (directory / "config.json").write_text(json.dumps({"model_type": "dual", "vision": "clip", "text": "clip"}))


def _vision(model: str, config: str, **more: Any) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        import transformers

        values = {**SIZES, **IMAGES, "num_hidden_layers": 4, **more}
        _save(getattr(transformers, model)(getattr(transformers, config)(**values)), directory)

    return write


def _text(model: str, config: str, words: Callable[[Path], None], **more: Any) -> Callable[[Path], None]:
    def write(directory: Path) -> None:
        import transformers

        values = {**SIZES, "num_hidden_layers": 2, **more}
        _save(getattr(transformers, model)(getattr(transformers, config)(**values)), directory)
        words(directory)

    return write


def _save(model: Any, directory: Path) -> None:
    """Weights large enough that each input shows in the output."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("norm" in name.lower() and name.endswith("weight")) or "lambda1" in name:
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim:
                parameter.normal_(0, 0.15)
    model.save_pretrained(directory)


def _write_normalisation(directory: Path) -> None:
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (directory / "preprocessor_config.json").write_text(json.dumps(values))


def _write_words(directory: Path) -> None:
    """WordPiece with [CLS] and [SEP], as BERT, FLAVA and ViLT have."""
    from transformers import BertTokenizerFast

    (directory / "vocab.txt").write_text("\n".join(mini.WORDS) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)


def _write_pairs(directory: Path) -> None:
    """CLIP's byte pairs, between <|startoftext|> and <|endoftext|>, which is the padding too."""
    from transformers import CLIPTokenizer

    vocabulary = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "re", "red</w>", *_CLIP_SPECIAL]
    CLIPTokenizer(
        vocab={word: i for i, word in enumerate(vocabulary)}, merges=[("r", "e"), ("re", "d</w>")]
    ).save_pretrained(directory)


def _write_pieces(directory: Path) -> None:
    """SigLIP's pieces with </s> at the end, which is the padding too; there is no token that starts a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = ["</s>", "<unk>", *(f"▁{word}" for word in mini.WORDS[5:] if word.isalpha()), "▁", *_LETTERS]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=1))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    ).save_pretrained(directory)


_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
_CLIP_WORDS = {"vocab_size": 56, "max_position_embeddings": 32, "bos_token_id": 54, "eos_token_id": 55}
_SIGLIP_WORDS = {"vocab_size": 44, "max_position_embeddings": 32, "bos_token_id": 0, "eos_token_id": 0}
_BERT_WORDS = {"vocab_size": len(mini.WORDS), "max_position_embeddings": 32}

VISION: dict[str, Callable[[Path], None]] = {
    "vit": _vision("ViTModel", "ViTConfig"),
    "dinov2": _vision("Dinov2Model", "Dinov2Config", mlp_ratio=2),
    "clip": _vision("CLIPVisionModel", "CLIPVisionConfig"),
    "siglip": _vision("SiglipVisionModel", "SiglipVisionConfig"),
}
TEXT: dict[str, Callable[[Path], None]] = {
    "bert": _text("BertModel", "BertConfig", _write_words, **_BERT_WORDS),
    "minilm": _text("BertModel", "BertConfig", _write_words, **_BERT_WORDS, hidden_size=24, num_hidden_layers=3),
    "clip": _text("CLIPTextModel", "CLIPTextConfig", _write_pairs, **_CLIP_WORDS),
    "siglip": _text("SiglipTextModel", "SiglipTextConfig", _write_pieces, **_SIGLIP_WORDS),
}
FAMILIES: dict[str, Callable[[Path], Any]] = {
    "flava": mini.write_mini_foundation,
    "vilt": write_vilt,
    "vit-bert": write_dual("vit", "bert"),
    "dinov2-minilm": write_dual("dinov2", "minilm"),
    "clip": write_clip,
    "siglip": write_dual("siglip", "siglip"),
}
"""Every family, and of two towers every tower that is promised; a MiniLM is a BERT of another width."""
