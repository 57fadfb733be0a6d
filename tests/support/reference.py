"""TAP written a second time, plainly and slowly, from docs/method.md alone: what the product must compute.

It shares no code with the product: a pretrained FLAVA's weights, torch's functions, and arithmetic in float64. Nothing
here is fused, cached, grouped or skipped: four paths are four passes, attention is a softmax of a product, AdamW is its
update rule. Settings come as the plain tables of `federation.toml`, components as arrays by component and tensor name.

What the method leaves open is the product's own convention, written out again: how seeds are derived (`seed_of`), in
which order a task's examples are drawn (`Drawn`), and the names of the tensors (`ADAPTED`). Dropout multiplies by
`mask(shape, p)`, a function of the shape alone: whoever compares must make the product's dropout do the same.

Shapes: B examples, S tokens of one modality, T tokens of all modalities, d hidden size, V vocabulary.
"""

import functools
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import BertTokenizerFast, FlavaModel

Arrays = dict[str, dict[str, np.ndarray]]
"""Component to tensor name to values."""

Parameters = dict[str, dict[str, Tensor]]

ADAPTED = {
    "encoder": ("blocks.{layer}.{part}.lora_{matrix}", ("q", "v")),
    "mote/attention": ("mote.{layer}.{part}.lora_{matrix}", ("q", "v")),
    "mote/expert": ("mote.{layer}.{part}.lora_{matrix}", ("up", "down")),
    "mome/attention": ("mome.{layer}.{part}.lora_{matrix}", ("q", "v")),
    "mome/expert": ("mome.{layer}.{part}.lora_{matrix}", ("up", "down")),
}
"""How the product names an adapter's tensors, and which linear layers a component adapts, by family."""

FLAVA = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
}
"""Parts of a layer in FLAVA's own names."""

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
NOISE = 1e-4
"""A gradient that is so small a part of its tensor's others may be float32's rounding errors."""
IMAGE_SIDE = 64
NO_WORD = -100


def seed_of(*parts: str | int) -> int:
    digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def mask(shape: Sequence[int], p: float) -> Tensor:
    """What dropout multiplies a tensor by: zeros and 1 / (1 - p), the same for whatever stands before (S, width)."""
    return _mask(int(shape[-2]), int(shape[-1]), p)


@functools.cache
def _mask(tokens: int, width: int, p: float) -> Tensor:
    kept = np.random.default_rng([tokens, width, 5]).random((tokens, width)) >= p
    return torch.from_numpy(kept / (1 - p))


@dataclass
class TrainedPhase:
    """What a phase of training leaves: the trained values and h[o]."""

    values: Parameters
    history: dict[str, float]
    norms: list[float] = field(default_factory=list)
    """The norm of each step's gradient before clipping."""


@dataclass
class Device:
    """A device: its data, its personal set, its histories, and what it did last."""

    name: str
    data: Mapping[str, Sequence[Mapping[str, Any]]]
    """By task: examples with ``image`` (uint8, any size), ``text`` and ``target``."""
    personal: Arrays | None = None
    federated_loss: dict[str, float] = field(default_factory=dict)
    personal_loss: dict[str, float] = field(default_factory=dict)
    replaced: dict[str, bool] = field(default_factory=dict)
    trained: Arrays = field(default_factory=dict)
    phases: dict[str, TrainedPhase] = field(default_factory=dict)


class Reference:
    """The method for one federation."""

    def __init__(self, settings: Mapping[str, Any], foundation: Path) -> None:
        """``settings``: every table of `federation.toml` with its defaults filled in."""
        self.settings = settings
        self.tasks: Mapping[str, Any] = settings["tasks"]
        self.flava = FlavaModel.from_pretrained(foundation, local_files_only=True).double().eval().requires_grad_(False)
        self.tokenizer = BertTokenizerFast.from_pretrained(foundation, local_files_only=True)
        self.normalisation = json.loads((foundation / "preprocessor_config.json").read_text())
        self.heads = self.flava.config.multimodal_config.num_attention_heads
        self.words: Tensor = self.flava.text_model.embeddings.word_embeddings.weight
        self.undecided: dict[tuple[str, str], np.ndarray] = {}
        """By component and tensor, where a gradient was as small as float32's rounding errors in some step of some
        phase: Adam makes whole steps of those, in a direction that nobody can predict."""

    # -- which components: docs/method.md section 3 --

    def components(self, task: str) -> set[str]:
        kind, names = self.tasks[task]["kind"], {f"decoder/{task}"}
        for m in self.tasks[task]["inputs"]:
            names.add(f"encoder/{m}")
            for a in (m, "shared"):
                for b in (kind, "shared"):
                    names |= {f"mote/attention/{a}", f"mote/expert/{a}/{b}"}
                    names |= {f"mome/attention/{b}", f"mome/expert/{b}/{a}"}
        return names

    def owned(self, device: Device) -> list[str]:
        return sorted(set().union(*(self.components(task) for task in device.data)))

    def federated(self, devices: Sequence[Device]) -> set[str]:
        """The components that enough devices own; any other stays at home."""
        owners = Counter(c for device in devices for c in self.owned(device))
        return {c for c, count in owners.items() if count >= self.settings["rounds"]["min_cohort"]}

    def start(self, device: Device, W: Arrays, federated: set[str]) -> Arrays:
        """What w_i starts from: the global value, or the device's own of a component that stays at home."""
        return {c: W[c] if c in federated or not device.trained else device.trained[c] for c in self.owned(device)}

    # -- the model: section 3 --

    def output(self, task: str, batch: "Batch", values: Parameters, training: bool) -> Tensor:
        """Logits (B, classes), an image (B, 3, 64, 64), or logits (B, words, V)."""
        inputs: Sequence[str] = self.tasks[task]["inputs"]
        streams = {m: self.encode(m, batch, values, training) for m in inputs}
        masks = {m: batch.text_mask if m == "text" else torch.ones(streams[m].shape[:2]).bool() for m in inputs}
        kind, paths = self.tasks[task]["kind"], []
        for own_modality in (True, False):
            for own_kind in (True, False):
                b = kind if own_kind else "shared"
                keys = {m: m if own_modality else "shared" for m in inputs}
                paths.append(self.path(streams, masks, keys, b, values, training))
        tokens = torch.stack(paths).mean(0)
        decode = {"text_generation": self.write, "image_generation": self.draw}.get(kind, self.classify)
        return decode(values[f"decoder/{task}"], tokens, masks, batch)

    def encode(self, m: str, batch: "Batch", values: Parameters, training: bool) -> Tensor:
        """(B, S, d) of one modality."""
        if m == "image":
            model, project = self.flava.image_model, self.flava.image_to_mm_projection
            x = model.embeddings(batch.image)
            seen = torch.ones(x.shape[:2]).bool()
        else:
            model, project = self.flava.text_model, self.flava.text_to_mm_projection
            x, seen = model.embeddings(input_ids=batch.words), batch.text_mask
        for index, layer in enumerate(model.encoder.layer):
            lora = self.adapters("encoder", m, index, values, training)
            x = self.transform(layer, self.attend(layer, x, seen, lora), {})
        return project(model.layernorm(x))

    def path(
        self,
        streams: Mapping[str, Tensor],
        masks: Mapping[str, Tensor],
        keys: Mapping[str, str],
        b: str,
        values: Parameters,
        training: bool,
    ) -> Tensor:
        """One path (a, b), ``keys`` saying what a is for each modality: (B, T, d)."""
        layers, L = self.flava.multimodal_model.encoder.layer, self.settings["model"]["stage_layers"] or 1
        after: dict[str, Tensor] = {}
        for m, x in streams.items():
            for index in range(L):
                attention = self.adapters("mote/attention", keys[m], index, values, training)
                expert = self.adapters("mote/expert", f"{keys[m]}/{b}", index, values, training)
                x = self.transform(layers[index], self.attend(layers[index], x, masks[m], attention), expert)
            after[m] = x
        seen = torch.cat(list(masks.values()), dim=1)
        for index in range(L):
            together = torch.cat(list(after.values()), dim=1)
            attention = self.adapters("mome/attention", b, index, values, training)
            together = self.attend(layers[L + index], together, seen, attention)
            start = 0
            for m in after:
                part = together[:, start : start + after[m].shape[1]]
                start += after[m].shape[1]
                expert = self.adapters("mome/expert", f"{b}/{keys[m]}", index, values, training)
                after[m] = self.transform(layers[L + index], part, expert)
        return torch.cat(list(after.values()), dim=1)

    def adapters(
        self, family: str, key: str, layer: int, values: Parameters, training: bool
    ) -> dict[str, Callable[[Tensor], Tensor]]:
        """What a component adds to the linear layers that it adapts: alpha / r * B A dropout(x), by part."""
        group = {"encoder": "encoder", "mote/attention": "attention", "mome/attention": "attention"}.get(
            family, "expert"
        )
        table, tensors = self.settings["lora"], values[f"{family}/{key}"]
        scale, p = table[group]["alpha"] / table[group]["rank"], table["dropout"]
        form, parts = ADAPTED[family]

        def adapter(part: str) -> Callable[[Tensor], Tensor]:
            A, B = (tensors[form.format(layer=layer, part=part, matrix=matrix)] for matrix in "AB")

            def add(x: Tensor) -> Tensor:
                dropped = x * mask(x.shape, p) if training else x
                return scale * dropped @ A.T @ B.T

            return add

        return {part: adapter(part) for part in parts}

    def attend(
        self, layer: torch.nn.Module, x: Tensor, seen: Tensor, lora: Mapping[str, Callable[[Tensor], Tensor]]
    ) -> Tensor:
        """x + Attn(LN1 x); nobody attends to where ``seen`` is false."""
        y = part(layer, "norm1")(x)
        q, k, v = (self.linear(layer, name, y, lora) for name in "qkv")
        mixed = attention(q, k, v, self.heads, seen[:, None, :].expand(-1, x.shape[1], -1))
        return x + part(layer, "out")(mixed)

    def transform(self, layer: torch.nn.Module, x: Tensor, lora: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        """x + FFN(LN2 x)."""
        inner = F.gelu(self.linear(layer, "up", part(layer, "norm2")(x), lora))
        return x + self.linear(layer, "down", inner, lora)

    @staticmethod
    def linear(layer: torch.nn.Module, name: str, x: Tensor, lora: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        frozen = part(layer, name)(x)
        return frozen + lora[name](x) if name in lora else frozen

    @staticmethod
    def classify(values: Mapping[str, Tensor], tokens: Tensor, masks: Mapping[str, Tensor], batch: "Batch") -> Tensor:
        x = normed(values, "norm", pool(tokens, masks))
        return affine(values, "outer", F.gelu(affine(values, "inner", x)))

    def draw(self, values: Mapping[str, Tensor], tokens: Tensor, masks: Mapping[str, Tensor], batch: "Batch") -> Tensor:
        x = affine(values, "seed", normed(values, "norm", pool(tokens, masks)))
        x = x.reshape(len(x), -1, IMAGE_SIDE // 16, IMAGE_SIDE // 16)
        for index in range(4):
            weight, bias = values[f"up.{index}.weight"], values[f"up.{index}.bias"]
            x = F.conv_transpose2d(F.gelu(x), weight, bias, stride=2, padding=1)
        return x

    def write(
        self, values: Mapping[str, Tensor], tokens: Tensor, masks: Mapping[str, Tensor], batch: "Batch"
    ) -> Tensor:
        """Teacher forcing: the answer's words but the last go in."""
        words = batch.target[:, :-1].clamp(min=0)
        x = affine(values, "read", self.words[words]) + values["positions.weight"][: words.shape[1]]
        width = x.shape[-1]
        heads = next(h for h in range(self.heads, 0, -1) if width % h == 0)
        earlier = torch.ones(words.shape[1], words.shape[1]).tril().bool().expand(len(words), -1, -1)
        seen = torch.cat(list(masks.values()), dim=1)[:, None].expand(-1, words.shape[1], -1)
        memory = affine(values, "memory", normed(values, "memory_norm", tokens))
        for index in range(self.settings["model"]["text_decoder_layers"]):
            inner = {
                k.removeprefix(f"layers.{index}."): v for k, v in values.items() if k.startswith(f"layers.{index}.")
            }
            q, k, v = affine(inner, "self_in", normed(inner, "self_norm", x)).split(width, dim=-1)
            x = x + affine(inner, "self_out", attention(q, k, v, heads, earlier))
            k, v = affine(inner, "cross_in", memory).split(width, dim=-1)
            q = affine(inner, "cross_query", normed(inner, "cross_norm", x))
            x = x + affine(inner, "cross_out", attention(q, k, v, heads, seen))
            x = x + affine(inner, "outer", F.gelu(affine(inner, "inner", normed(inner, "inner_norm", x))))
        written = normed(values, "write_norm", F.gelu(affine(values, "write", normed(values, "norm", x))))
        return written @ self.words.T + values["bias"]

    # -- losses: sections 3 and 5 --

    def losses(self, task: str, output: Tensor, target: Tensor) -> Tensor:
        """One for each example, (B,)."""
        kind = self.tasks[task]["kind"]
        if kind == "image_generation":
            return ((output - target) ** 2).flatten(1).mean(1)
        logs = output - output.logsumexp(-1, keepdim=True)
        if kind == "text_generation":
            return torch.stack(
                [
                    torch.stack([-row[n, w] for n, w in enumerate(answer[1:]) if w != NO_WORD]).mean()
                    for row, answer in zip(logs, target.tolist(), strict=True)
                ]
            )
        return -logs[torch.arange(len(target)), target]

    def divergences(self, task: str, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """beta T^2 KL(teacher || student), one for each example, (B,)."""
        table, kind = self.settings["algorithm"]["distillation"], self.tasks[task]["kind"]
        if kind == "image_generation":
            return table["beta"][kind] * ((student - teacher) ** 2).flatten(1).mean(1)
        T = table["temperature"]
        p, q = torch.softmax(teacher / T, -1), torch.softmax(student / T, -1)
        each = T**2 * (p * (p / q).log()).sum(-1)
        if kind == "text_generation":
            real = target[:, 1:] != NO_WORD
            each = torch.stack([row[ok].mean() for row, ok in zip(each, real, strict=True)])
        return table["beta"][kind] * each

    # -- training: section 4, steps 2 and 4; section 5 --

    def train(
        self,
        device: Device,
        start: Arrays,
        seed: int,
        rate: float,
        steps: int,
        teacher: Parameters | None = None,
        *,
        pull: tuple[float, Arrays] | None = None,
        still: str = "",
    ) -> TrainedPhase:
        """``pull``: a factor, half of which times the squared distance from the arrays is added to the loss. ``still``:
        tensors whose names end so are not trained, if it is given."""
        table = self.settings["training"]
        values = {
            c: {n: torch.from_numpy(v.astype(np.float64)).requires_grad_() for n, v in group.items()}
            for c, group in start.items()
        }
        leaves = [
            (c, n, values[c][n]) for c in sorted(values) for n in sorted(values[c]) if not (still and n.endswith(still))
        ]
        first = [torch.zeros_like(leaf) for *_, leaf in leaves]
        second = [torch.zeros_like(leaf) for *_, leaf in leaves]
        drawn = {task: Drawn(device.data[task], seed_of(seed, "order", task)) for task in sorted(device.data)}
        sizes = shares({task: len(rows) for task, rows in device.data.items()}, table["batch_size"], table["shares"])
        losses: dict[str, list[float]] = {task: [] for task in device.data}
        norms = []
        for step in range(1, steps + 1):
            total = torch.zeros((), dtype=torch.float64)
            for _ in range(table["accumulation"]):
                for task, stream in drawn.items():
                    batch = self.batch(task, [next(stream) for _ in range(sizes[task])])
                    output = self.output(task, batch, values, training=True)
                    each = self.losses(task, output, batch.target)
                    losses[task] += each.tolist()
                    if teacher is not None:
                        with torch.no_grad():
                            taught = self.output(task, batch, teacher, training=False)
                        each = each + self.divergences(task, output, taught, batch.target)
                    total = total + each.sum() / sum(sizes.values()) / table["accumulation"]
            if pull is not None:
                for c, n, leaf in leaves:
                    total = (
                        total + pull[0] / 2 * ((leaf - torch.from_numpy(pull[1][c][n].astype(np.float64))) ** 2).sum()
                    )
            gradients = torch.autograd.grad(total, [leaf for *_, leaf in leaves])
            norms.append(math.sqrt(sum(float((g**2).sum()) for g in gradients)))
            clip = min(1.0, table["clip_norm"] / (norms[-1] + 1e-6))
            with torch.no_grad():
                for (c, n, leaf), g, m, v in zip(leaves, gradients, first, second, strict=True):
                    leaf *= 1 - rate * table["weight_decay"]
                    m.mul_(BETA1).add_((1 - BETA1) * g * clip)
                    v.mul_(BETA2).add_((1 - BETA2) * (g * clip) ** 2)
                    size = (v / (1 - BETA2**step)).sqrt()
                    leaf -= rate * (m / (1 - BETA1**step)) / (size + EPSILON)
                    self.undecided[c, n] = (
                        self.undecided.get((c, n), False)
                        | ((size > 0) & (size < NOISE * size.square().mean().sqrt())).numpy()
                    )
        trained = {c: {n: leaf.detach() for n, leaf in group.items()} for c, group in values.items()}
        return TrainedPhase(trained, {task: float(np.mean(rows)) for task, rows in losses.items()}, norms)

    def batch(self, task: str, rows: Sequence[Mapping[str, Any]]) -> "Batch":
        table, image, words, text_mask = self.tasks[task], None, None, None
        if "image" in table["inputs"]:
            image = torch.stack([self.pixels(row["image"], self.flava.config.image_config.image_size) for row in rows])
        if "text" in table["inputs"]:
            most = min(self.settings["training"]["text_length"], self.flava.config.text_config.max_position_embeddings)
            ids = [self.tokenizer(row["text"])["input_ids"] for row in rows]
            ids = [one if len(one) <= most else [*one[: most - 1], one[-1]] for one in ids]
            longest = max(len(one) for one in ids)
            pad = self.tokenizer.pad_token_id
            words = torch.tensor([one + [pad] * (longest - len(one)) for one in ids])
            text_mask = torch.tensor([[n < len(one) for n in range(longest)] for one in ids])
        if table["kind"] == "image_generation":
            target = torch.stack([self.pixels(row["target"], IMAGE_SIDE) for row in rows])
        elif table["kind"] == "text_generation":
            start, end, most = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id, table["length"]
            answers = [
                [start, *self.tokenizer(row["target"], add_special_tokens=False)["input_ids"][: most - 1], end]
                for row in rows
            ]
            longest = max(len(answer) for answer in answers)
            target = torch.tensor([answer + [NO_WORD] * (longest - len(answer)) for answer in answers])
        else:
            target = torch.tensor([row["target"] for row in rows])
        return Batch(image, words, text_mask, target)

    def pixels(self, image: np.ndarray, side: int) -> Tensor:
        """uint8 (h, w, 3) to normalised (3, side, side)."""
        if image.shape[:2] != (side, side):
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))
        mean, std = (np.array(self.normalisation[key]) for key in ("image_mean", "image_std"))
        return torch.from_numpy((image.astype(np.float64) / 255 - mean) / std).permute(2, 0, 1)

    # -- stage 1: section 4 --

    def rate(self, t: int) -> float:
        table = self.settings["training"]
        w = table["warmup_rounds"]
        if w == "auto":
            w = min(20, max(1, self.settings["rounds"]["total"] // 10))
        return table["learning_rate"] * (1 / 3 + 2 / 3 * min(1, t / w) if w else 1)

    def take_part(self, t: int, device: Device, W: Arrays, federated: set[str]) -> None:
        """Steps 1 to 5 on one device."""
        table, seed = self.settings["training"], self.settings["seed"]
        received = self.start(device, W, federated)
        seeds = {name: seed_of(seed, device.name, t, name) for name in ("federated", "personal")}
        fed = self.train(device, received, seeds["federated"], self.rate(t), table["steps"])
        w = arrays(fed.values)
        margins = self.settings["algorithm"]["margins"]
        R = {
            o: fed.history[o] + margins[self.tasks[o]["kind"]] < device.personal_loss.get(o, math.inf)
            for o in device.data
        }
        x = {c: dict(group) for c, group in (device.personal or w).items()}
        for c in received:
            votes = [R[o] for o in device.data if c in self.components(o)]
            if all(votes) if self.settings["algorithm"]["shared_replacement"] == "all" else any(votes):
                x[c] = dict(w[c])
        own = self.train(device, x, seeds["personal"], self.rate(t), table["steps"])
        device.personal, device.trained, device.replaced = arrays(own.values), w, R
        device.federated_loss, device.personal_loss = fed.history, own.history
        device.phases = {"federated": fed, "personal": own}

    def aggregate(self, W: Arrays, devices: Sequence[Device], federated: set[str]) -> Arrays:
        """W_r <- sum_i n_{i,r} w_{i,r} / sum_i n_{i,r} over the devices that reported r, if they are enough."""
        following = dict(W)
        for r in federated:
            owners = [device for device in devices if r in device.trained]
            if len(owners) < self.settings["rounds"]["min_cohort"]:
                continue
            n = [sum(len(device.data[o]) for o in device.data if r in self.components(o)) for device in owners]
            following[r] = {
                name: sum(k * device.trained[r][name] for k, device in zip(n, owners, strict=True)) / sum(n)
                for name in W[r]
            }
        return following

    # -- stage 2: section 5 --

    def distil(self, device: Device, W: Arrays, federated: set[str]) -> None:
        table, seed = self.settings["algorithm"]["distillation"], self.settings["seed"]
        seeds = {name: seed_of(seed, device.name, "stage 2", name) for name in ("teacher", "student")}
        received = self.start(device, W, federated)
        teacher = self.train(device, received, seeds["teacher"], table["learning_rate"], table["steps"])
        student = self.train(
            device,
            device.personal or received,
            seeds["student"],
            table["learning_rate"],
            table["steps"],
            teacher.values,
        )
        device.phases = {"teacher": teacher, "student": student}
        device.personal = arrays(student.values)


@dataclass
class Batch:
    """Examples of one task as tensors, padded to the longest."""

    image: Tensor | None
    words: Tensor | None
    text_mask: Tensor | None
    target: Tensor


class Drawn(Iterator[Mapping[str, Any]]):
    """A task's examples in a seeded order, all of them before any comes twice."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], seed: int) -> None:
        self.rows, self.random, self.left = rows, np.random.default_rng(seed), []

    def __next__(self) -> Mapping[str, Any]:
        if not self.left:
            self.left = self.random.permutation(len(self.rows)).tolist()
        return self.rows[self.left.pop(0)]


def shares(examples: Mapping[str, int], size: int, how: str) -> dict[str, int]:
    """A batch's examples by task: of all ways to give each at least one, the nearest to the quotas; ties by name."""
    names = sorted(examples)
    weight = examples if how == "proportional" else dict.fromkeys(names, 1)
    total = sum(weight.values())
    best: dict[str, int] = {}
    least: tuple[Any, ...] = (math.inf,)
    for counts in splits(max(size, len(names)), len(names)):
        far = sum((k * total - size * weight[n]) ** 2 for n, k in zip(names, counts, strict=True))
        if (far, tuple(-k for k in counts)) < least:
            least, best = (far, tuple(-k for k in counts)), dict(zip(names, counts, strict=True))
    return best


def splits(size: int, parts: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``size`` as a sum of so many numbers above zero."""
    if parts == 1:
        yield (size,)
        return
    for k in range(1, size - parts + 2):
        for rest in splits(size - k, parts - 1):
            yield (k, *rest)


def part(layer: torch.nn.Module, name: str) -> torch.nn.Module:
    return layer.get_submodule(FLAVA[name])


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, seen: Tensor) -> Tensor:
    """Softmax(q k / sqrt(width)) v, head by head; ``seen`` (B, queries, keys) is false where none may look."""
    width, mixed = q.shape[-1] // heads, []
    for h in range(heads):
        own = slice(h * width, (h + 1) * width)
        scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(width)
        mixed.append(torch.softmax(scores.masked_fill(~seen, -math.inf), dim=-1) @ v[..., own])
    return torch.cat(mixed, dim=-1)


def pool(tokens: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """The mean over modalities of the mean of each one's tokens that are no padding, (B, d)."""
    means, start = [], 0
    for seen in masks.values():
        of_modality = tokens[:, start : start + seen.shape[1]]
        start += seen.shape[1]
        means.append(torch.stack([row[real].mean(0) for row, real in zip(of_modality, seen, strict=True)]))
    return torch.stack(means).mean(0)


def affine(values: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ values[f"{name}.weight"].T + values[f"{name}.bias"]


def normed(values: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * values[f"{name}.weight"] + values[f"{name}.bias"]


def arrays(values: Parameters) -> Arrays:
    return {c: {n: v.numpy() for n, v in group.items()} for c, group in values.items()}
