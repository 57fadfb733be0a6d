"""What a step of local training costs beside the frozen products that it cannot do without.

    python benchmarks/local_training.py                                  # full-size FLAVA, every device; minutes
    python benchmarks/local_training.py --device image --steps 3
    python benchmarks/local_training.py --foundation deploy/demo/foundation/tiny-flava --batch 16 --steps 30 --threads 1

The floor is recorded from a real step: every product with a frozen matrix, forward and input gradient, and every
attention kernel, in their shapes and layouts, and nothing else. It is then run again on its own between the steps that
are measured, so that floor and step see the same noise of the machine; minima are compared. Each device is measured
in a process of its own, and its memory (the highest resident set: weights, libraries, everything) in another. Beside it
stands a plain loop of peft's LoRA on the same encoders, query and value of every layer, without a backbone.

Without --foundation the weights are random, of FLAVA's published sizes: d = 768, 12 image, 12 text and 6 multimodal
layers, 224 pixels in patches of 16, 30,522 words. --quick takes small sizes and says nothing about speed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging as transformers_logging

from tap_core.algorithms.distillation import teaching
from tap_core.examples import Example
from tap_core.foundations import load_foundation
from tap_core.model.tap_model import TapModel, build_model
from tap_core.settings.federation import FederationConfig
from tap_core.settings.runtime import Runtime
from tap_core.tasks import task_kind
from tap_core.training.loop import TrainingPhase, train
from tap_core.training.runtime import make_accelerator

FAMILIES = ("flava", "vilt")
CLASSES = [f"class {index}" for index in range(10)]
DEVICES: dict[str, dict[str, dict[str, Any]]] = {
    "image": {"labels": {"kind": "image_classification", "inputs": ["image"], "classes": CLASSES}},
    "text": {"topics": {"kind": "text_classification", "inputs": ["text"], "classes": CLASSES}},
    "vqa": {"answers": {"kind": "text_generation", "inputs": ["image", "text"], "length": 8}},
}
"""The tasks of each device that is measured."""

clock = time.perf_counter
"""What seconds are: with --cpu-time those of the process."""

PHASES = ("federated", "personal", "distilled")
WORDS = 64
"""Words of a text; a question has 12."""


@dataclass(frozen=True)
class Result:
    """Seconds are minima over the steps; memory in bytes. ``gigaflops`` are those of the floor's products."""

    device: str
    gigaflops: float
    floor: float
    attention: float
    steps: dict[str, float]
    construction: float
    trainable_share: float
    update_bytes: int
    peft: float
    peak: int = 0
    peak_second_set: float = 0.0
    peft_peak: int = 0

    def ratio(self, phase: str) -> float:
        return self.steps[phase] / (self.floor + self.attention)


# --- foundations and data


def write_foundation(directory: Path, family: str, quick: bool) -> Path:
    """Random weights of a family in transformers' file format."""
    from transformers import BertTokenizerFast, FlavaConfig, FlavaModel, ViltConfig, ViltModel

    directory.mkdir()
    width, layers, words = (64, 4, 500) if quick else (768, 12, 30522)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (directory / "vocab.txt").write_text("\n".join([*special, *(f"w{i}" for i in range(words - len(special)))]) + "\n")
    BertTokenizerFast(vocab=str(directory / "vocab.txt")).save_pretrained(directory)
    sizes = {"hidden_size": width, "num_attention_heads": width // 16 if quick else 12, "intermediate_size": 4 * width}
    torch.manual_seed(7)
    if family == "vilt":
        image = {"image_size": 32, "patch_size": 8} if quick else {"image_size": 384, "patch_size": 32}
        text = {"vocab_size": words, "max_position_embeddings": 128}
        ViltModel(
            ViltConfig(**sizes, **image, **text, num_hidden_layers=2 * layers if quick else layers)
        ).save_pretrained(directory)
        return directory
    image = {"image_size": 32, "patch_size": 8} if quick else {"image_size": 224, "patch_size": 16}
    config = FlavaConfig(
        image_config={**sizes, **image, "num_hidden_layers": layers},
        text_config={**sizes, "num_hidden_layers": layers, "vocab_size": words, "max_position_embeddings": 512},
        multimodal_config={**sizes, "num_hidden_layers": layers // 2},
        hidden_size=width,
        projection_dim=8,
    )
    FlavaModel(config).save_pretrained(directory)
    return directory


def make_examples(device: str, count: int, image_size: int, words: int) -> dict[str, list[Example]]:
    """Random pixels and words; classes in turn."""
    generator = np.random.default_rng(5)

    def text(length: int) -> str:
        return " ".join(f"w{index}" for index in generator.integers(0, words, length))

    def example(index: int, kind: str, inputs: list[str]) -> Example:
        pixels = generator.integers(0, 256, (image_size, image_size, 3)).astype(np.uint8)
        return Example(
            pixels if "image" in inputs else None,
            text(12 if "image" in inputs else WORDS) if "text" in inputs else None,
            text(5) if kind == "text_generation" else index % len(CLASSES),
        )

    return {
        name: [example(index, task["kind"], task["inputs"]) for index in range(count)]
        for name, task in DEVICES[device].items()
    }


@dataclass(frozen=True)
class Ground:
    """All that a measurement of one device needs."""

    config: FederationConfig
    model: TapModel
    data: dict[str, list[Example]]
    construction: float


def prepare(options: argparse.Namespace) -> Ground:
    foundation = load_foundation(str(options.foundation))
    config = FederationConfig.model_validate(
        {
            "name": "benchmark",
            "foundation": str(options.foundation),
            "tasks": DEVICES[options.device],
            "training": {"batch_size": options.batch},
            "lora": {
                key: value
                for key, value in (("dropout", options.dropout), ("encoder_layers", options.encoder_layers))
                if value is not None
            },
        }
    )
    began = clock()
    model = build_model(config, config.tasks_named(config.tasks), foundation)
    construction = clock() - began
    words = foundation.tokenizer.get_vocab_size() - 5
    data = make_examples(options.device, options.batch, foundation.image_size, words)
    return Ground(config, model, data, construction)


def train_phase(ground: Ground, phase: str, steps: int, on_step: Callable[[], None]) -> None:
    """One phase as a device runs it; ``on_step`` is called after each step."""
    accelerator = make_accelerator(Runtime(device="cpu"), 1)
    train(
        ground.model,
        "federated" if phase == "federated" else "personal",
        ground.data,
        ground.config.training,
        TrainingPhase(phase, 1, steps, 1e-4),
        accelerator,
        extra=teaching(ground.model, ground.config.algorithm.distillation, accelerator)
        if phase == "distilled"
        else None,
        on_progress=lambda *_: on_step(),
    )


# --- the floor


class Recorder(TorchDispatchMode):
    """Keeps the frozen products and the attention kernels of what runs under it, with their arguments' shapes."""

    PRODUCTS = ("addmm", "addmm_", "mm", "bmm", "baddbmm", "convolution")
    ATTENTION = "_scaled_dot_product"

    def __init__(self, frozen: set[int]) -> None:
        super().__init__()
        self.frozen = frozen
        self.products: list[Callable[[], object]] = []
        self.attention: list[Callable[[], object]] = []
        self.flops = 0
        self.buffers: dict[tuple[object, ...], Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.__name__.split(".")[0]
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name in self.PRODUCTS and any(self.is_frozen(a) for a in tensors):
            self.flops += self.count(name, tensors, out)
            self.products.append(self.again(func, args, kwargs))
        elif name.startswith(self.ATTENTION):
            self.attention.append(self.again(func, args, kwargs))
        return out

    def is_frozen(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.frozen

    def count(self, name: str, tensors: list[Tensor], out: Tensor) -> int:
        if name == "convolution":
            return 2 * out.numel() * tensors[1][0].numel()
        return 2 * out.numel() * tensors[-1].shape[-2]

    def again(self, func: Any, args: Any, kwargs: Any) -> Callable[[], object]:
        """The same call on weights themselves and on buffers of the activations' shapes and layouts."""
        if func.__name__.startswith("addmm_"):  # as a plain product: repeated sums would grow without bound
            func, args = torch.ops.aten.mm.out, args[1:]
            kwargs = {"out": torch.empty(args[0].shape[0], args[1].shape[1])}
        fresh = tuple(self.stand_in(a) if isinstance(a, Tensor) else a for a in args)
        named = {key: self.stand_in(a) if isinstance(a, Tensor) else a for key, a in kwargs.items()}
        return lambda: func(*fresh, **named)

    def stand_in(self, tensor: Tensor) -> Tensor:
        if self.is_frozen(tensor):
            return tensor
        key = (tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in self.buffers:
            self.buffers[key] = tensor.detach().clone(memory_format=torch.preserve_format)
        return self.buffers[key]


def record(model: nn.Module, frozen: list[Tensor], step: Callable[[], Tensor]) -> Recorder:
    """The floor of one step: ``step`` returns the loss. The model's gradients are cleared."""
    recorder = Recorder({tensor.untyped_storage().data_ptr() for tensor in frozen})
    with recorder:
        step().backward()
    model.zero_grad(set_to_none=True)
    return recorder


@torch.no_grad()
def seconds_of(calls: list[Callable[[], object]]) -> float:
    began = clock()
    for call in calls:
        call()
    return clock() - began


@contextmanager
def trainable(model: TapModel, parameter_set: str) -> Iterator[None]:
    parameters = list(model.trainable(parameter_set).values())
    everything = [p for s in ("federated", "personal") for p in model.trainable(s).values()]
    for parameter in everything:
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    yield
    for parameter in parameters:
        parameter.requires_grad_(False)


def record_step(ground: Ground) -> Recorder:
    """The floor of a step of the federated set."""
    model = ground.model
    own = {id(p) for parameter_set in ("federated", "personal") for p in model.trainable(parameter_set).values()}
    frozen = [p for p in model.parameters() if id(p) not in own] + [model.embeddings]

    def step() -> Tensor:
        total = torch.zeros(())
        for name, examples in ground.data.items():
            batch = model.preprocessor.batch(model.tasks[name], examples)
            total = total + task_kind(batch.task.kind).loss(model(batch, "federated"), batch.target).mean()
        return total

    model.train()
    with trainable(model, "federated"):
        return record(model, frozen, step)


# --- the plain peft loop


class PlainPeft:
    """peft's LoRA on the device's encoders, mean pooling, a linear head, AdamW: what one would write by hand."""

    def __init__(self, options: argparse.Namespace) -> None:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel

        model = AutoModel.from_pretrained(options.foundation).requires_grad_(False)
        modalities = next(iter(DEVICES[options.device].values()))["inputs"]
        adapters = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.3, target_modules=["query", "value"])
        text = getattr(model.config, "text_config", model.config)
        side = getattr(model.config, "image_config", model.config).image_size
        generator = torch.Generator().manual_seed(1)
        length = 12 if modalities == ["image", "text"] else WORDS if "text" in modalities else 1
        pixels = {"pixel_values": torch.randn(options.batch, 3, side, side, generator=generator)}
        words = {"input_ids": torch.randint(5, text.vocab_size, (options.batch, length + 2), generator=generator)}
        self.calls: list[tuple[nn.Module, dict[str, Tensor]]]
        if model.config.model_type == "flava":
            parts = {"image": (model.image_model, pixels), "text": (model.text_model, words)}
            self.calls = [(get_peft_model(parts[m][0], adapters), parts[m][1]) for m in modalities]
        else:  # one encoder takes both: an image goes with an empty text, a text with an image all the same
            self.calls = [(get_peft_model(model, adapters), {**pixels, **words})]
        self.encoders = nn.ModuleList(module for module, _ in self.calls).train()
        self.head = nn.Linear(len(self.calls) * text.hidden_size, len(CLASSES))
        parameters = [p for m in (self.encoders, self.head) for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.target = torch.arange(options.batch) % len(CLASSES)

    def step(self) -> None:
        pooled = [module(**inputs).last_hidden_state.mean(1) for module, inputs in self.calls]
        nn.functional.cross_entropy(self.head(torch.cat(pooled, dim=1)), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


# --- measurements, each in a process of its own


def measure_time(options: argparse.Namespace) -> Result:
    ground = prepare(options)
    model = ground.model
    floor = record_step(ground)
    plain = PlainPeft(options)
    floors, attentions, pefts = [], [], []
    times: dict[str, list[float]] = {phase: [] for phase in options.phases}

    def beside() -> None:
        floors.append(seconds_of(floor.products))
        attentions.append(seconds_of(floor.attention))
        began = clock()
        plain.step()
        pefts.append(clock() - began)

    beside()
    for phase in options.phases:
        began_step = clock()

        def on_step(phase: str = phase) -> None:
            nonlocal began_step
            times[phase].append(clock() - began_step)
            beside()
            began_step = clock()

        train_phase(ground, phase, options.steps, on_step)
    state = model.state("federated")
    values = sum(array.size for group in state.values() for array in group.values())
    everything = {id(p): p.numel() for p in model.parameters()}
    own = sum(p.numel() for p in model.trainable("federated").values())
    return Result(
        options.device,
        gigaflops=floor.flops / 1e9,
        floor=min(floors),
        attention=min(attentions),
        steps={phase: min(values) for phase, values in times.items()},
        construction=ground.construction,
        trainable_share=own / (sum(everything.values()) - own),
        update_bytes=4 * values,
        peft=min(pefts),
    )


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Highest resident set after a federated phase, and what the second set adds by the end of stage 2."""
    ground = prepare(options)
    train_phase(ground, "federated", 2, lambda: None)
    first = resident_peak()
    state = ground.model.state("federated")
    ground.model.load("personal", state)
    own = sum(array.nbytes for group in state.values() for array in group.values())
    for phase in PHASES[1:]:
        train_phase(ground, phase, 2, lambda: None)
    return {"peak": first, "peak_second_set": resident_peak() / (first - own)}


def measure_peft_memory(options: argparse.Namespace) -> dict[str, float]:
    plain = PlainPeft(options)
    for _ in range(2):
        plain.step()
    return {"peft_peak": resident_peak()}


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], object]] = {
    "time": lambda options: asdict(measure_time(options)),
    "memory": measure_memory,
    "peft": measure_peft_memory,
}


def in_process(what: str, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement in a fresh process."""
    arguments = json.dumps({**vars(options), "foundation": str(options.foundation), "json": None})
    command = [sys.executable, __file__, "--measure", what, arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(options: argparse.Namespace) -> Result:
    result = Result(**in_process("time", options))
    if options.no_memory:
        return result
    return replace(result, **in_process("memory", options), **in_process("peft", options))


HEADER = (
    "device  phase        GFlop    floor  attention     step  ratio   peft step  trainable  update  construction"
    "     peak  x 2 sets  peft peak"
)


def rows(result: Result) -> Iterator[str]:
    for index, (phase, step) in enumerate(result.steps.items()):
        line = (
            f"{result.device:7} {phase:10} {result.gigaflops:7.1f} {seconds(result.floor)}  {seconds(result.attention)}"
        )
        line += f" {seconds(step)}  {result.ratio(phase):5.2f}"
        if index == 0:
            line += f"   {seconds(result.peft)} {result.trainable_share:9.2%} {result.update_bytes / 1e6:4.2f} MB"
            line += f"   {seconds(result.construction)}"
            if result.peak:
                line += (
                    f"   {result.peak / 1e9:4.2f} GB  {result.peak_second_set:8.3f}    {result.peft_peak / 1e9:4.2f} GB"
                )
        yield line


def seconds(value: float) -> str:
    return f"{value:6.2f} s " if value >= 1 else f"{value * 1e3:6.1f} ms"


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        warnings.simplefilter("ignore")
        transformers_logging.disable_progress_bar()
        options = argparse.Namespace(**json.loads(sys.argv[3]))
        if options.cpu_time:
            global clock
            clock = time.process_time
        if options.threads:
            torch.set_num_threads(options.threads)
        print(json.dumps(MEASUREMENTS[sys.argv[2]](options)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", action="append", choices=DEVICES, help="may be given again; all by default")
    parser.add_argument("--phase", action="append", choices=PHASES, help="may be given again; all by default")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each phase")
    parser.add_argument("--batch", type=int, default=8, help="examples of a step")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves it to torch")
    parser.add_argument("--dropout", type=float, help="LoRA dropout; the federation's default unless given")
    parser.add_argument("--encoder-layers", type=int, help="adapters in the last so many layers of the encoders alone")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0], help="of the random weights")
    parser.add_argument("--foundation", type=Path, help="a directory with weights, instead of random ones")
    parser.add_argument("--no-memory", action="store_true", help="leave memory out, which takes processes of its own")
    parser.add_argument(
        "--cpu-time", action="store_true", help="measure CPU seconds: with --threads 1 on a busy machine"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: does it run")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    options.phases = options.phase or list(PHASES)
    results = []
    with tempfile.TemporaryDirectory() as scratch:
        if options.foundation is None:
            options.foundation = write_foundation(Path(scratch) / options.family, options.family, options.quick)
        print(HEADER, flush=True)
        for device in options.device or DEVICES:
            results.append(measure(argparse.Namespace(**{**vars(options), "device": device})))
            print("\n".join(rows(results[-1])), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")


if __name__ == "__main__":
    main()
