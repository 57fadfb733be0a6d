"""A package from outside: a task kind, a foundation, an indicator, a decision, an algorithm and a sampler of its own.

Its entry points are beside it, as an installed package's would be. Nothing of tap-edge knows it.
"""

from collections import Counter

import numpy as np

from tap_core.tasks.base import TaskKind
from tap_core.tasks.metrics import Metric
from tap_core.triggers.base import Decision, ExampleIndicator

STARS = 5


class Rating(TaskKind):
    """One to five stars, as thresholds that a text's quality passes or not."""

    name = "rating"
    words = "star rating"
    needs = ("text",)
    output = "thresholds"
    margin = 0.02
    beta = 0.3
    metrics = (Metric("stars_off", False, each=lambda answer, wanted: float(abs(answer - wanted))),)

    def parse(self, cell, task):
        if cell not in [str(n) for n in range(1, STARS + 1)]:
            raise ValueError(f"{cell!r} is no number of stars from 1 to {STARS}")
        return int(cell)

    def encode(self, task, examples, preprocessor, facts):
        stars = np.array([e.target for e in examples])[:, None]
        return (stars > np.arange(1, STARS)).astype(np.float32)  # (n, 4): passed two stars? three? ...

    def head(self, task, sizes):
        from tap_core.tasks.decoders import PooledHead

        return PooledHead(sizes.hidden, 16, STARS - 1)

    def loss(self, output, target):
        from torch.nn import functional as F

        return F.binary_cross_entropy_with_logits(output.float(), target, reduction="none").mean(-1)

    def divergence(self, student, teacher, target, temperature):
        return (student.float() - teacher.float()).square().mean(-1)

    def answers(self, output, task, facts):
        return (1 + (output > 0).sum(-1)).tolist()

    def trivial(self, task, train, test):
        return {"commonest": [Counter(train).most_common(1)[0][0]] * len(test)}

    def predict(self, output, task):
        return {"stars": int(1 + (output > 0).sum())}

    def line(self, facts):
        return "*" * facts["stars"]


class Surprise(ExampleIndicator):
    """Twice the loss, which orders as the loss does."""

    def scores(self, model, parameter_set, batch):
        from tap_core.tasks import task_kind

        return 2 * task_kind(batch.task.kind).loss(model(batch, parameter_set), batch.target)


class Mostly(Decision):
    """The federated set is better on most of the held-out examples."""

    needs_held_out = True

    def replaces(self, evidence):
        federated, personal = evidence.held_out()
        assert len(federated) == len(personal) >= 2
        return bool((federated < personal).mean() > 0.5)


def in_turn(seed, round_number, attempt, roster, count):
    """The next devices in the order of their names."""
    names = sorted(roster)
    return tuple(sorted(names[(round_number + attempt + i) % len(names)] for i in range(min(count, len(names)))))


def __getattr__(name):
    """What needs torch is made when it is asked for: the coordinator imports this module too."""
    if name == "ToyTap":
        from tap_core.algorithms.base import Final
        from tap_core.algorithms.tap import Tap

        class ToyTap(Tap):
            """TAP that pulls the personal set a tenth of the way to the federated one at the end, and no stage 2."""

            def finish(self, local, state):
                personal, received = local.model.state("personal"), local.model.state("federated")
                pulled = {
                    c: {k: 0.9 * value + 0.1 * received[c][k] for k, value in group.items()}
                    for c, group in personal.items()
                }
                return Final(pulled)

        return ToyTap
    raise AttributeError(name)


def load_toy(directory):
    """Word vectors that are read from a file, one encoder layer, two backbone layers of fixed random numbers."""
    import torch
    from safetensors.torch import load_file
    from tokenizers import Tokenizer
    from torch import nn

    from tap_core.foundations.base import Block, Blocks, Encoder, Foundation, SpecialTokens

    vectors = load_file(directory / "model.safetensors")["words"]
    width = vectors.shape[1]

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(vectors, freeze=True)

        def forward(self, ids):
            return self.table(ids)

    def block():
        linear = {n: nn.Linear(width, width) for n in ("q", "k", "v", "out")}
        up, down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        norms = {"norm1": nn.LayerNorm(width), "norm2": nn.LayerNorm(width)}
        return Block(**linear, **norms, up=up, act=nn.functional.gelu, down=down, heads=2)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        text = Encoder(embed=Words(), blocks=[block()])
        backbone = Blocks([block(), block()])
    for module in (text, backbone):
        module.requires_grad_(False).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return Foundation(
        family="toy",
        stage_layers=1,
        encoders={"text": text},
        blocks=backbone,
        word_embeddings=text.embed.table.weight,
        tokenizer=tokenizer,
        special=SpecialTokens(*(tokenizer.token_to_id(name) for name in ("[PAD]", "[CLS]", "[SEP]"))),
        hidden=width,
        image_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        text_positions=32,
    )
