"""Opening a foundation's files: configuration, normalisation, tokenizer, weights; damage is one line that names it.

It knows file names and transformers' loaders. It does not know what a family does with them.
"""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from tap_core.errors import UsageError


def load_weights(model_class: Any, directory: Path, family: str) -> Any:
    """A transformers model in float32, frozen, in eval mode; loaded strictly.

    Raises UsageError if a file is damaged or tensors are missing or of another shape.
    """
    transformers_logging.disable_progress_bar()
    try:
        model, info = model_class.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except Exception as error:  # transformers documents no list of what a damaged file may raise
        raise damaged(directory, error) from None
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
        raise UsageError(
            f"{directory} lacks {len(lacking)} tensors of {family}, {lacking[0]} first; fetch its files again"
        )
    return model.requires_grad_(False).eval()


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer, without padding or truncation of its own. Raises UsageError if its files are damaged."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True).backend_tokenizer
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot read
        raise damaged(directory / "tokenizer.json", error) from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_id(tokenizer: Tokenizer, *names: str) -> int:
    """The id of the first of ``names`` that the tokenizer has. Raises UsageError if it has none."""
    for name in names:
        if (found := tokenizer.token_to_id(name)) is not None:
            return int(found)
    raise UsageError(f"the foundation's tokenizer has no {' or '.join(names)} token; use the model's own")


def load_normalisation(
    directory: Path, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of preprocessor_config.json, or those given where it has none."""
    path = directory / "preprocessor_config.json"
    if not path.is_file():
        return mean, std
    values = load_json(path)
    return tuple(values.get("image_mean", mean)), tuple(values.get("image_std", std))


def load_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises UsageError if the file holds anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise damaged(path, error) from None
    if not isinstance(values, dict):
        raise damaged(path, "no JSON object")
    return values


def damaged(path: Path, error: object) -> UsageError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return UsageError(f"{path} cannot be loaded ({reason}); fetch the model's files again")
