"""The miniature federation of the tests: a random FLAVA of 32 hidden units, one task of each kind, data for them.

Also read by `benchmarks/golden.py`, which records what such a federation trains to.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", "##a", "##b", "red", "green", "blue"]
WORDS += ["what", "colour", "is", "this"]
COLOURS = ("red", "green", "blue")
MINI_TASKS: dict[str, dict[str, Any]] = {
    "colour": {"kind": "image_classification", "inputs": ["image"], "classes": list(COLOURS)},
    "letters": {"kind": "text_classification", "inputs": ["text"], "classes": ["low", "high"]},
    "redraw": {"kind": "image_generation", "inputs": ["image"]},
    "ask": {"kind": "text_generation", "inputs": ["image", "text"], "length": 5},
    "shade": {"kind": "regression", "inputs": ["image"]},
    "marks": {"kind": "multilabel", "inputs": ["text"], "classes": ["a", "b", "c"]},
}


def write_mini_foundation(directory: Path) -> Path:
    """A FLAVA of 32 hidden units with random weights and 16-pixel images, in transformers' file format."""
    import torch
    from transformers import BertTokenizerFast, FlavaConfig, FlavaModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    directory.mkdir()
    (directory / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.1}
    config = FlavaConfig(
        image_config={**sizes, "num_hidden_layers": 2, "image_size": 16, "patch_size": 8},
        text_config={**sizes, "num_hidden_layers": 2, "vocab_size": len(WORDS), "max_position_embeddings": 32},
        multimodal_config={**sizes, "num_hidden_layers": 4},
        hidden_size=32,
        projection_dim=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        FlavaModel(config).save_pretrained(directory)
    normalisation = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (directory / "preprocessor_config.json").write_text(json.dumps(normalisation))
    return directory


def mini_settings(foundation: Path, **tables: Any) -> Any:
    """A FederationConfig of the miniature tasks; keyword arguments replace or extend its tables."""
    from tap_core.settings.federation import FederationConfig

    values: dict[str, Any] = {
        "name": "mini",
        "foundation": str(foundation),
        "seed": 3,
        "tasks": MINI_TASKS,
        "rounds": {"total": 3, "clients_per_round": 2},
        "training": {"steps": 3, "batch_size": 6, "learning_rate": 3e-3, "warmup_rounds": 0, "text_length": 16},
        "algorithm": {"distillation": {"steps": 3}},
    }
    if tables.get("algorithm", {}).get("name", "tap") != "tap":
        del values["algorithm"]["distillation"]  # it is TAP's
    for name, table in tables.items():
        merge = isinstance(table, dict) and name != "tasks"
        values[name] = merged(values.get(name, {}), table) if merge else table
    return FederationConfig.model_validate(values)


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Tables within tables extend each other."""
    inner = {
        k: merged(values[k], v) for k, v in more.items() if isinstance(v, dict) and isinstance(values.get(k), dict)
    }
    return {**values, **more, **inner}


def mini_image(colour: int, generator: np.random.Generator) -> np.ndarray:
    """16 x 16 pixels, mostly of one colour."""
    pixels = generator.integers(0, 60, (16, 16, 3)).astype(np.uint8)
    pixels[..., colour] += 150
    return pixels


def mini_data(task: str, train: int = 20, test: int = 8, seed: int = 1, decision: int = 0) -> Any:
    """TaskData of one of the miniature tasks."""
    from tap_core.examples import Example, TaskData

    generator = np.random.default_rng([seed, *task.encode()])
    examples = []
    for _ in range(train + test + decision):
        colour, high = int(generator.integers(3)), int(generator.integers(2))
        image = mini_image(colour, generator)
        letters = " ".join(generator.choice(list("efgh" if high else "abcd"), 5))
        examples.append(
            {
                "colour": Example(image, None, colour),
                "letters": Example(None, letters, high),
                "redraw": Example(image, None, image),
                "ask": Example(image, "what colour is this", COLOURS[colour]),
                "shade": Example(image, None, float(image.mean())),
                "marks": Example(None, letters, tuple(i for i, letter in enumerate("abc") if letter in letters)),
            }[task]
        )
    return TaskData(examples[:train], examples[train : train + test], examples[train + test :])
