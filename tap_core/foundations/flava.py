"""The frozen, pretrained FLAVA, loaded once per process (METHOD.md section 3).

It knows transformers' classes. It does not know tasks, adapters or decoders.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoTokenizer, FlavaModel
from transformers.utils import logging as transformers_logging

from tap_core.errors import UsageError
from tap_core.foundations.files import find_foundation

DEFAULT_MEAN, DEFAULT_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""FLAVA's own normalisation, used where the directory has no preprocessor_config.json."""


@dataclass(frozen=True)
class Foundation:
    """Frozen modules and the facts about them. ``hidden`` is d; ``heads`` of the multimodal layers."""

    encoders: nn.ModuleDict
    """``image`` and ``text``: FlavaImageModel and FlavaTextModel, without poolers."""
    projections: nn.ModuleDict
    """FLAVA's linear maps from each encoder's width to the multimodal layers' width."""
    layers: nn.ModuleList
    """The multimodal encoder's layers, in order."""
    tokenizer: Tokenizer
    hidden: int
    heads: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    text_positions: int

    @property
    def word_embeddings(self) -> torch.Tensor:
        """(vocabulary, width of the text encoder), frozen."""
        weight: torch.Tensor = self.encoders["text"].embeddings.word_embeddings.weight
        return weight


def load_foundation(source: str) -> Foundation:
    """The foundation at ``source``; a second call in the process returns the same object (METHOD.md section 8, 9)."""
    return _load(find_foundation(source).resolve())


@functools.lru_cache(maxsize=1)
def _load(directory: Path) -> Foundation:
    kind = _json(directory / "config.json").get("model_type")
    if kind != "flava":
        raise UsageError(f"{directory}/config.json has model_type {kind!r}; a FLAVA model ('flava') is needed")
    transformers_logging.disable_progress_bar()
    try:
        model, info = FlavaModel.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # transformers documents no list of what a damaged file may raise
        raise _damaged(directory, error) from None
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
        raise UsageError(
            f"{directory} lacks {len(lacking)} tensors of FLAVA, {lacking[0]} first; fetch its files again"
        )
    model.requires_grad_(False).eval()
    model.image_model.pooler = model.text_model.pooler = None
    mean, std = _normalisation(directory)
    return Foundation(
        encoders=nn.ModuleDict({"image": model.image_model, "text": model.text_model}),
        projections=nn.ModuleDict({"image": model.image_to_mm_projection, "text": model.text_to_mm_projection}),
        layers=model.multimodal_model.encoder.layer,
        tokenizer=_tokenizer(directory),
        hidden=model.config.multimodal_config.hidden_size,
        heads=model.config.multimodal_config.num_attention_heads,
        image_size=model.config.image_config.image_size,
        mean=mean,
        std=std,
        text_positions=model.config.text_config.max_position_embeddings,
    )


def _tokenizer(directory: Path) -> Tokenizer:
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot read
        raise _damaged(directory / "tokenizer.json", error) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _normalisation(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        return DEFAULT_MEAN, DEFAULT_STD
    values = _json(path)
    return tuple(values.get("image_mean", DEFAULT_MEAN)), tuple(values.get("image_std", DEFAULT_STD))


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _damaged(path, error) from None
    if not isinstance(values, dict):
        raise _damaged(path, "no JSON object")
    return values


def _damaged(path: Path, error: object) -> UsageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"{path} cannot be loaded ({reason}); fetch the model's files again")
