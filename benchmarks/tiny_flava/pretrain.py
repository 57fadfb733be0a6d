"""Pretrain `tiny-flava` from scratch: `PYTHONPATH=benchmarks python -m tiny_flava.pretrain --out DIRECTORY`.

Self-supervised, on the train splits of deploy/demo/data, seeded, on the CPU. A checkpoint beside the output lets an
interrupted run go on. The result is a directory that FlavaModel and AutoTokenizer load.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections import defaultdict
from pathlib import Path

import torch
from transformers import FlavaModel

from tiny_flava import corpus, vocabulary
from tiny_flava import model as shape
from tiny_flava.objectives import Heads
from tiny_flava.step import Pretraining, Sizes

CHECKPOINT_EVERY = 50


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on beside the data and the code."""

    steps: int = 2800
    seed: int = 0
    learning_rate: float = 1.5e-3
    warmup: int = 60
    word_share: float = 0.3
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    whole_images: int = 2000
    sizes: Sizes = dataclasses.field(default_factory=Sizes)


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of a step: a linear warm-up, then a cosine down to a fiftieth at the last step."""
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    progress = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.learning_rate * (0.02 + 0.98 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)


def optimizer_of(model: FlavaModel, heads: Heads, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW. Matrices decay, vectors and embeddings do not; word embeddings, which start informed, learn slowly."""
    words = model.text_model.embeddings.word_embeddings.weight
    others = [p for module in (model, heads) for p in module.parameters() if p is not words]
    groups = [
        {"params": [p for p in others if p.ndim == 2], "weight_decay": recipe.weight_decay, "share": 1.0},
        {"params": [p for p in others if p.ndim != 2], "weight_decay": 0.0, "share": 1.0},
        {"params": [words], "weight_decay": 0.0, "share": recipe.word_share},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def publish(model: FlavaModel, tokenizer: vocabulary.Tokenizer, out: Path) -> None:
    """Write the model, the tokenizer and the image preprocessing into ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    vocabulary.save_tokenizer(tokenizer, out, shape.TEXT_POSITIONS)
    vocabulary.save_preprocessor(out, shape.IMAGE_SIZE, shape.IMAGE_MEAN, shape.IMAGE_STD)


def pretrain(recipe: Recipe, out: Path, checkpoint: Path) -> dict[str, object]:
    """Train, publishing now and then, and return the record: seconds, and the mean of each loss per 50 steps."""
    torch.set_num_threads(1)  # the two branches of a step have a thread each (see step.py)
    if checkpoint.exists():
        tokenizer = vocabulary.Tokenizer.from_file(str(out / "tokenizer.json"))
    else:
        tokenizer = vocabulary.train_tokenizer(corpus.vocabulary_texts(), shape.VOCABULARY)
    model = shape.new_model(shape.tiny_flava_config(tokenizer.get_vocab_size()), recipe.seed)
    heads = Heads(tokenizer.get_vocab_size())
    optimizer = optimizer_of(model, heads, recipe)
    work = Pretraining(tokenizer, recipe.sizes, recipe.seed)
    with torch.no_grad():
        model.text_model.embeddings.word_embeddings.weight.copy_(work.starting_embeddings(shape.HIDDEN))
        model.text_model.embeddings.word_embeddings.weight[vocabulary.PAD] = 0
    start, seconds, history = 0, 0.0, []
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds, history = saved["step"], saved["seconds"], saved["history"]
        work.skip(start)
    model.train()
    began, sums = time.monotonic(), defaultdict(float)
    for step in range(start, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(recipe, step)
        optimizer.zero_grad()
        losses = work.backward(model, heads, step, whole=step >= recipe.whole_images)
        torch.nn.utils.clip_grad_norm_([*model.parameters(), *heads.parameters()], recipe.clip_norm)
        optimizer.step()
        for name, loss in losses.items():
            sums[name] += loss
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == recipe.steps:
            spent = seconds + time.monotonic() - began
            count = (step % CHECKPOINT_EVERY) + 1
            history.append({"step": step + 1, **{name: round(value / count, 4) for name, value in sums.items()}})
            sums.clear()
            print(json.dumps({**history[-1], "seconds": round(spent)}), flush=True)
            publish(model, tokenizer, out)
            state = {"model": model.state_dict(), "heads": heads.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1, "seconds": spent, "history": history}, checkpoint)
    return {"recipe": dataclasses.asdict(recipe), "seconds": seconds + time.monotonic() - began, "losses": history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write the model into")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--checkpoint", type=Path, help="default: OUT with the suffix .checkpoint.pt")
    arguments = parser.parse_args()
    recipe = Recipe(steps=arguments.steps, seed=arguments.seed)
    checkpoint = arguments.checkpoint or arguments.out.with_suffix(".checkpoint.pt")
    record = pretrain(recipe, arguments.out, checkpoint)
    (arguments.out / "losses.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
