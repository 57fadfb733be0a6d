"""Opening a foundation's files: configuration, normalisation, tokenizer, weights; damage is one line that names it.

It knows file names and transformers' loaders. It does not know what a family does with them.
"""

import math
import re
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from tap_core.errors import UsageError, quoted
from tap_core.foundations.base import SpecialTokens
from tap_core.foundations.files import damaged, load_json


def load_weights(model_class: Any, directory: Path, family: str, *, unused: str = "", **options: Any) -> Any:
    """A transformers model in float32, frozen, in eval mode; loaded strictly.

    Args:
        model_class: The class in transformers.
        directory: Where its files are.
        family: What to call the model in messages.
        unused: A regular expression of tensors that nothing here reads, so that they may be missing.
        options: Further arguments of ``from_pretrained``.

    Returns:
        The model.

    Raises:
        UsageError: A file is damaged, or other tensors are missing or of another shape.
    """
    transformers_logging.disable_progress_bar()
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it tells of tensors that are not used; of missing ones we tell
    try:
        model, info = model_class.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True, local_files_only=True, **options
        )
    except Exception as error:  # transformers documents no list of what a damaged file may raise
        raise damaged(directory, error) from None
    finally:
        transformers_logging.set_verbosity(level)
    lacking = sorted(str(key) for key in (*info["missing_keys"], *info["mismatched_keys"]))
    if lacking := [name for name in lacking if not (unused and re.search(unused, name))]:
        raise UsageError(
            f"{directory} lacks {len(lacking)} tensors of {family}, {lacking[0]} first; fetch its files again"
        )
    return model.requires_grad_(False).eval()


def load_tokenizer(directory: Path) -> tuple[Tokenizer, SpecialTokens]:
    """The tokenizer, without padding or truncation of its own, and its special tokens.

    A tokenizer without a token that starts a text starts an answer with its padding, as T5 does; one without padding
    pads with its end token.

    Args:
        directory: Where its files are.

    Returns:
        The tokenizer, and the ids of its special tokens.

    Raises:
        UsageError: The files are damaged, or no token ends a text.
    """
    try:
        fast = _fast_tokenizer(directory)
    except Exception as error:  # the Rust library raises plain Exception for a file that it cannot read
        raise damaged(directory / "tokenizer.json", error) from None
    ends = _known(fast.sep_token_id, fast.eos_token_id)
    if not ends:
        raise UsageError(f"the tokenizer in {directory} has no end token (eos or sep); use the model's own")
    pad = _known(fast.pad_token_id, *ends)[0]
    start = _known(fast.cls_token_id, fast.bos_token_id, pad)[0]
    return _plain(fast.backend_tokenizer), SpecialTokens(pad, start, ends[0])


def _fast_tokenizer(directory: Path) -> Any:
    """The family's own tokenizer, or what tokenizer.json says where that one is no fast tokenizer (SigLIP)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception:
        tokenizer = None
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer
    return PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """A copy whose saved file does all that it does: what transformers' CLIPTokenizer does in Python after decoding, a
    space for the mark that ends a word, its decoder does."""
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.no_padding()
    plain.no_truncation()
    mark = getattr(plain.model, "end_of_word_suffix", None)
    if mark and not isinstance(plain.decoder, decoders.BPEDecoder):
        before = [] if plain.decoder is None else [plain.decoder]
        strip = decoders.Replace(Regex(r"\A\s+|\s+\z"), "")
        plain.decoder = decoders.Sequence([*before, decoders.Fuse(), decoders.Replace(mark, " "), strip])
    return plain


def _known(*ids: int | None) -> list[int]:
    return [found for found in ids if found is not None]


def load_normalisation(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation of each colour, from preprocessor_config.json or processor_config.json.

    Args:
        directory: Where the files are.

    Returns:
        Mean and standard deviation, three numbers each, of pixels from 0 to 1; None where neither file has them.

    Raises:
        UsageError: A file is damaged.
    """
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            values = load_json(directory / name)
            values = values.get("image_processor", values)
            if not isinstance(values, dict):
                raise damaged(directory / name, "image_processor is no JSON object")
            if "image_mean" in values and "image_std" in values:
                mean, std = (_colours(directory / name, key, values[key]) for key in ("image_mean", "image_std"))
                if min(std) <= 0:
                    raise damaged(directory / name, f"image_std is {list(std)} and must be above 0")
                return mean, std
    return None


def _colours(path: Path, key: str, values: Any) -> tuple[float, ...]:
    is_three = isinstance(values, list) and len(values) == 3
    if not is_three or not all(type(number) in (int, float) and math.isfinite(number) for number in values):
        raise damaged(path, f"{key} is {quoted(values)} and must be three numbers")
    return tuple(values)
