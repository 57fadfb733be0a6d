"""Measure the pretrained model and write its card: `PYTHONPATH=benchmarks python -m tiny_flava.card DIRECTORY`.

It adds the probe's accuracies to losses.json and renders README.md from that file alone, so the card holds no number
that was not measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from string import Template
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import FlavaModel

from tiny_flava import probe
from tiny_flava.model import HIDDEN, new_model, tiny_flava_config
from tiny_flava.step import Pretraining, Sizes

RECORD = "losses.json"
TEMPLATE = Path(__file__).with_name("card.md")
OBJECTIVES = {
    "masked_patches": "pixels of the hidden patches, each patch normalised (image alone)",
    "coarse_image": "16 x 16 image from the pooled tokens of the seen patches (image alone)",
    "sketch": "oriented gradients and coarse colour, 80 principal components, from the pooled tokens (image alone)",
    "image_views": "two augmented views of one image, NT-Xent (image alone)",
    "masked_words": "masked words of definitions and sentences (text alone)",
    "bag_of_words": "a text's own words, and the word it defines, from its pooled tokens (text alone)",
    "word_definition": "a definition with its word, a sentence with its concepts, contrastive (text alone)",
    "caption_words": "masked words of an emoji's name and keywords, given its image (both)",
    "image_name": "emoji with name and keywords, contrastive on pooled tokens (each alone)",
    "image_name_towers": "the same on the towers' [CLS] through FLAVA's projections (each alone)",
    "matching": "right caption or another one of the batch (both)",
}


def measure(directory: Path) -> dict[str, Any]:
    """Probe accuracies by source: the model in ``directory``, the same architecture untrained, and the floors."""
    record = json.loads((directory / RECORD).read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    untrained = new_model(tiny_flava_config(tokenizer.get_vocab_size()), record["recipe"]["seed"])
    found = {
        "pretrained": probe.accuracies(probe.features(FlavaModel.from_pretrained(directory), tokenizer)),
        "random weights": probe.accuracies(probe.features(untrained, tokenizer)),
    }
    with torch.no_grad():
        start = Pretraining(tokenizer, Sizes(), record["recipe"]["seed"]).starting_embeddings(HIDDEN)
        untrained.text_model.embeddings.word_embeddings.weight.copy_(start)
    return {
        **found,
        "random weights, words from co-occurrence": probe.accuracies(probe.features(untrained, tokenizer)),
        "pixels or word pieces": probe.accuracies(probe.raw_features(tokenizer)),
        "majority class": probe.majority(),
    }


def render(record: dict[str, Any]) -> str:
    """The card as Markdown, from a complete record."""
    recipe, history = record["recipe"], record["losses"]
    measured = record["probe"]
    tasks = list(measured["pretrained"])
    rows = [
        f"| {source} | " + " | ".join(f"{found[task]:.3f}" for task in tasks) + " |"
        for source, found in measured.items()
    ]
    first, last = history[0], history[-1]
    losses = [f"| {name} | {what} | {first[name]:.3f} | {last[name]:.3f} |" for name, what in OBJECTIVES.items()]
    sizes = recipe["sizes"]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        {**recipe, **sizes},
        minutes=f"{record['seconds'] / 60:.0f}",
        first_step=first["step"],
        last_step=last["step"],
        probe="\n".join(["| features | " + " | ".join(tasks) + " |", "|---|" + "---|" * len(tasks), *rows]),
        losses="\n".join(losses),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="the pretrained model")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = arguments.directory / RECORD
    record = {**json.loads(path.read_text(encoding="utf-8")), "probe": measure(arguments.directory)}
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.directory / "README.md").write_text(render(record), encoding="utf-8")
    print(json.dumps(record["probe"], indent=1))


if __name__ == "__main__":
    main()
