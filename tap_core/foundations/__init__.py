"""Families of foundations: one file each, one line below (docs/method.md section 3). Importing this loads no torch."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tap_core.faces import imported_when_asked
from tap_core.foundations.files import family_of, find_foundation, foundation_digest
from tap_core.registry import Registry

__all__ = [
    "FOUNDATIONS",
    "Block",
    "Encoder",
    "Foundation",
    "SpecialTokens",
    "as_block",
    "find_foundation",
    "foundation_digest",
    "load_foundation",
    "load_normalisation",
    "load_tokenizer",
    "load_weights",
]

if TYPE_CHECKING:
    from tap_core.foundations.base import Block, Encoder, Foundation, SpecialTokens
    from tap_core.foundations.layers import as_block
    from tap_core.foundations.loading import load_normalisation, load_tokenizer, load_weights
else:
    __getattr__ = imported_when_asked(
        __name__,
        {
            "base": ("Block", "Encoder", "Foundation", "SpecialTokens"),
            "layers": ("as_block",),
            "loading": ("load_normalisation", "load_tokenizer", "load_weights"),
        },
    )

FOUNDATIONS: "Registry[Callable[[Path], Foundation]]" = Registry("foundation family", "tap_edge.foundations")
"""By the ``model_type`` of config.json: a function from a directory to a `Foundation`."""

FOUNDATIONS.add("flava", "tap_core.foundations.flava:load")
FOUNDATIONS.add("vilt", "tap_core.foundations.vilt:load")
FOUNDATIONS.add("dual", "tap_core.foundations.dual:load")


def load_foundation(source: str) -> "Foundation":
    """The foundation at ``source``; a second call returns the same object (docs/method.md section 8, trap 9).

    Args:
        source: A directory or a hub id (``owner/name``).

    Returns:
        The frozen modules and the facts about them. Only the last one asked for is kept in memory.

    Raises:
        UsageError: There is none, its family is not known, or its files are damaged or incomplete.
    """
    return _load(find_foundation(source).resolve())


@functools.lru_cache(maxsize=1)
def _load(directory: Path) -> "Foundation":
    return FOUNDATIONS[family_of(directory)](directory)
