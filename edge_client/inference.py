"""Run an exported task on an image file or a text, with onnxruntime, tokenizers, pillow and numpy alone.

It knows what goes on around an exported model: preprocessing, softmax, pixels, greedy and beam search with a key-value
cache. It does not know torch, training or the federation.
Shapes: S input tokens, C classes, V vocabulary, M memory tokens, T words so far, K beams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from edge_client.exported import ImageSettings, open_model, open_tokenizer, read_task
from edge_client.images import ImageError, read_pixels
from tap_core.errors import UsageError
from tap_core.files import new_file


@dataclass(frozen=True)
class Answer:
    """A generated text. ``score``: mean natural log-probability per token, the end token included."""

    text: str
    tokens: tuple[int, ...]
    score: float


class Predictor:
    """One exported task, loaded once and used for many inputs."""

    def __init__(self, export_dir: str | Path, *, threads: int = 0) -> None:
        """``threads``: CPU threads, 0 for all cores. Raises UsageError if the directory is no complete export."""
        directory = Path(export_dir)
        self.task = read_task(directory)
        self.kind = self.task.known_kind
        self.sessions = {name: open_model(directory / name, threads) for name in self.kind.files}
        reads_or_writes_text = "text" in self.task.inputs or self.kind.generates_text
        self.tokenizer = open_tokenizer(directory / "tokenizer.json") if reads_or_writes_text else None

    def inputs(self, image: str | Path | None = None, text: str | None = None) -> dict[str, np.ndarray]:
        """The tensors of one example, batch size 1. Raises UsageError for an input too few, too many or unreadable."""
        given = {"image": image, "text": text}
        for modality, value in given.items():
            if modality in self.task.inputs and value is None:
                raise UsageError(
                    f"task {self.task.name!r} reads an input {modality} and none is given; add --{modality}"
                )
            if modality not in self.task.inputs and value is not None:
                raise UsageError(f"task {self.task.name!r} reads no {modality}; leave --{modality} out")
        tensors: dict[str, np.ndarray] = {}
        if image is not None and self.task.image is not None:
            tensors["image"] = normalise(read_image(image), self.task.image)[None]
        if text is not None and self.tokenizer is not None:
            ids = np.array([encode_text(self.tokenizer, text, self.task.text_length)], np.int64)
            tensors |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return tensors

    def answer(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What the task's kind makes of the output, for the kinds that do not generate text; a generated image is
        ``pixels``, uint8 (height, width, 3)."""
        (output,) = self.sessions["model.onnx"].run([self.kind.output], dict(inputs))
        facts = self.kind.predict(output[0], self.task)
        if "pixels" in facts:
            if self.task.image is None:
                raise UsageError(f"task {self.task.name!r}: its task.json lacks 'image'; export the task again")
            facts["pixels"] = to_pixels(facts["pixels"], self.task.image)
        return facts

    def write(self, inputs: Mapping[str, np.ndarray], *, beams: int = 1) -> Answer:
        """The generated text. ``beams`` = 1 is greedy; more returns the one with the best mean log-probability."""
        if beams < 1:
            raise UsageError(f"beams must be 1 or more, not {beams}")
        memory, mask = self.sessions["encoder.onnx"].run(["memory", "memory_mask"], dict(inputs))
        tokens, score = search(
            self.sessions["step.onnx"],
            memory,
            mask,
            start=self.task.cls_token_id,
            end=self.task.sep_token_id,
            length=self.task.length,
            beams=beams,
        )
        assert self.tokenizer is not None
        return Answer(self.tokenizer.decode(tokens, skip_special_tokens=True), tuple(tokens), score)


def predict(
    export_dir: str | Path,
    image: str | Path | None = None,
    text: str | None = None,
    *,
    output: str | Path | None = None,
    beams: int = 1,
    threads: int = 0,
) -> dict[str, Any]:
    """The facts about one prediction, ready for JSON: always ``task`` and ``kind``, and by kind

    classification: ``label``, ``probability`` and ``probabilities`` (by class, likeliest first); multilabel: ``labels``
    and ``probabilities``; regression: ``value``; image generation: ``path`` of the PNG written (``output``, or TASK.png
    in the working directory), ``width``, ``height``; text generation: ``answer``, ``tokens`` (their number), ``score``.

    Raises UsageError, in one line, for a directory that is no export, a missing input, or a file that is no image.
    """
    predictor = Predictor(export_dir, threads=threads)
    task = predictor.task
    facts: dict[str, Any] = {"task": task.name, "kind": task.kind}
    inputs = predictor.inputs(image, text)
    if output is not None and predictor.kind.target != "image":
        raise UsageError(f"task {task.name!r} writes no image; leave --output out")
    if predictor.kind.generates_text:
        answer = predictor.write(inputs, beams=beams)
        return facts | {"answer": answer.text, "tokens": len(answer.tokens), "score": answer.score}
    found = predictor.answer(inputs)
    if (pixels := found.pop("pixels", None)) is not None:
        path = Path(output) if output is not None else Path(f"{task.name}.png")
        save_png(pixels, path)
        found |= {"path": str(path), "width": pixels.shape[1], "height": pixels.shape[0]}
    return facts | found


def read_image(path: str | Path) -> np.ndarray:
    """An image file as uint8 (height, width, 3). Raises UsageError if it is missing, no readable image, or too deep."""
    try:
        return read_pixels(Path(path))
    except ImageError as error:
        raise UsageError(f"{path} {error}") from None


def normalise(pixels: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """uint8 (height, width, 3) to float32 (3, size, size); bicubic where the size differs."""
    side = (settings.size, settings.size)
    if pixels.shape[:2] != side:
        pixels = np.asarray(Image.fromarray(pixels).resize(side, Image.Resampling.BICUBIC))
    mean, std = _per_channel(settings)
    normalised: np.ndarray = (pixels.astype(np.float32).transpose(2, 0, 1) / np.float32(255) - mean) / std
    return normalised


def to_pixels(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Normalised float (3, height, width) to uint8 (height, width, 3).

    Rounded and clipped while still float: a cast to uint8 wraps round (docs/method.md section 8, trap 6).
    """
    mean, std = _per_channel(settings)
    restored = (image.astype(np.float32) * std + mean) * np.float32(255)
    pixels: np.ndarray = np.clip(np.rint(restored), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    return pixels


def save_png(pixels: np.ndarray, path: Path) -> None:
    """Write uint8 (height, width, 3) as a PNG, whole or not at all. Raises UsageError if it cannot be written."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give the path of the PNG file to write")
    try:
        with new_file(path) as file:
            Image.fromarray(pixels).save(file, format="PNG")
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror or error}; give a path in a writable directory"
        ) from None


def encode_text(tokenizer: Tokenizer, text: str, most: int) -> list[int]:
    """Token ids with special tokens, at most ``most``: cut before the last, which is the end token."""
    ids: list[int] = tokenizer.encode(text).ids
    return ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log-probabilities along the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    normalised: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


def search(
    step: onnxruntime.InferenceSession,
    memory: np.ndarray,
    memory_mask: np.ndarray,
    *,
    start: int,
    end: int,
    length: int,
    beams: int,
) -> tuple[list[int], float]:
    """Beam search (greedy with one beam) over one example: the best token ids without the end token, and their score.

    ``memory``: float32 (1, M, d); ``memory_mask``: int64 (1, M). At most ``length`` tokens. The score is the mean
    log-probability per token. Keys and values of earlier words are kept, so each step computes one word per beam.
    """
    memory, memory_mask = np.repeat(memory, beams, axis=0), np.repeat(memory_mask, beams, axis=0)
    key, value = _empty_cache(step, beams)
    word = np.full((beams, 1), start, np.int64)
    words = np.empty((beams, 0), np.int64)
    scores = np.full(beams, -np.inf)
    scores[0] = 0.0  # all hypotheses begin equal: only one of them may branch
    finished = np.zeros(beams, bool)
    for _ in range(length):
        feed = {"token": word, "memory": memory, "memory_mask": memory_mask, "past_key": key, "past_value": value}
        logits, key, value = step.run(["logits", "key", "value"], feed)
        gains = log_softmax(logits.astype(np.float64))  # (K, V)
        gains[finished] = -np.inf  # a finished hypothesis is carried on unchanged, as another end token
        gains[finished, end] = 0.0
        totals = (scores[:, None] + gains).reshape(-1)
        chosen = np.argsort(-totals, kind="stable")[:beams]
        origin, following = np.divmod(chosen, gains.shape[1])
        scores = totals[chosen]
        word = following[:, None].astype(np.int64)
        words = np.concatenate([words[origin], word], axis=1)
        key, value = key[:, origin], value[:, origin]
        finished = finished[origin] | (following == end)
        if finished.all():
            break
    before_end = (np.cumsum(words == end, axis=1) == 0).sum(axis=1)
    lengths = np.minimum(before_end + 1, words.shape[1])
    means = scores / lengths
    best = int(np.argmax(means))
    tokens: Sequence[int] = words[best].tolist()
    return list(tokens[: tokens.index(end)] if end in tokens else tokens), float(means[best])


def _empty_cache(step: onnxruntime.InferenceSession, beams: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of no words: float32 (layers, K, heads, 0, width of a head)."""
    shapes = {tensor.name: tensor.shape for tensor in step.get_inputs()}
    layers, _, heads, _, width = shapes["past_key"]
    empty = np.zeros((layers, beams, heads, 0, width), np.float32)
    return empty, empty


def _per_channel(settings: ImageSettings) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.asarray(v, np.float32).reshape(3, 1, 1) for v in (settings.mean, settings.std))
    return mean, std
