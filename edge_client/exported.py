"""An export directory, opened: `task.json`, `tokenizer.json` and the ONNX files of one task.

It knows the layout of the directory and what to say when a part is missing or damaged. It does not know what to run the
models on. It needs onnxruntime and tokenizers, no torch.
"""

import json
from pathlib import Path

import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_errors
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from tap_core.components import Modality
from tap_core.errors import UsageError
from tap_core.tasks import KINDS, TaskKind, task_kind

LOAD_ERRORS = tuple(
    getattr(onnxruntime_errors, name)
    for name in ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
)


class ImageSettings(BaseModel):
    """How pixels become the model's numbers: resized to (size, size), divided by 255, less the mean, by the std."""

    model_config = ConfigDict(frozen=True)

    size: int = Field(ge=1, le=4096)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class ExportedTask(BaseModel):
    """`task.json`; keys that later versions add are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    kind: str
    inputs: tuple[Modality, ...] = Field(min_length=1)
    classes: tuple[str, ...] = ()
    length: int = Field(default=32, ge=1, description="Most tokens of an answer.")
    facts: dict[str, float] = Field(default={}, description="What the kind learnt from the device's train split.")
    image: ImageSettings | None = None
    text_length: int = Field(default=256, ge=2, description="Most tokens of an input text.")
    pad_token_id: int = 0
    cls_token_id: int = Field(default=0, description="The decoder's start token.")
    sep_token_id: int = Field(default=0, description="The decoder's end token.")

    @property
    def known_kind(self) -> TaskKind:
        return task_kind(self.kind)


def read_task(directory: Path) -> ExportedTask:
    """The checked `task.json` of an export. Raises UsageError if there is none or it is damaged."""
    path = directory / "task.json"
    try:
        task = ExportedTask.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{directory} is no export (it has no task.json); make one with: tap-client export") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise UsageError(f"{path} is not an export's task.json ({where}); export the task again") from None
    except ValueError:  # no JSON or no UTF-8
        raise UsageError(f"{path} is not valid JSON; export the task again") from None
    if task.kind not in KINDS:
        raise UsageError(
            f"{path} is of kind {task.kind!r}, which this version lacks; its kinds are {', '.join(KINDS)}: "
            "use the version or install the package that exported it"
        )
    if task.image is None and ("image" in task.inputs or task.known_kind.target == "image"):
        raise UsageError(f"{path} lacks 'image', the size and normalisation of images; export the task again")
    return task


def open_model(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """An ONNX file, ready to run on the CPU. Raises UsageError if it is missing or damaged."""
    _require_file(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except LOAD_ERRORS:
        raise UsageError(f"{path} is not an ONNX model that onnxruntime can load; export the task again") from None


def open_tokenizer(path: Path) -> Tokenizer:
    """A `tokenizer.json` without its own padding and truncation. Raises UsageError if it is missing or damaged."""
    _require_file(path)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict) or "model" not in values:
        raise UsageError(f"{path} is not a tokenizer; export the task again")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"{path.parent} is no complete export: {path.name} is missing; export the task again")
