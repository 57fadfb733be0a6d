"""The machine that a device trains on: which processor, which precision, how many threads; as an accelerator.

It knows accelerate. It does not know models.
"""

from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tap_core.errors import UsageError
from tap_core.settings.base import Settings


class Runtime(Settings):
    """Where and how a device trains."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = 0
    """CPU threads; 0 leaves torch's own choice."""


def make_accelerator(runtime: Runtime, accumulation: int) -> Accelerator:
    """An accelerator for this machine.

    Raises UsageError if the runtime asks for a CUDA device or a precision that the machine does not have.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UsageError('runtime.device is "cuda" and torch sees no CUDA device; set it to "auto" or "cpu"')
    on_cpu = runtime.device == "cpu" or not torch.cuda.is_available()
    if runtime.precision == "fp16" and on_cpu:
        raise UsageError('runtime.precision "fp16" needs a CUDA device; set it to "fp32" or "bf16"')
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    mixed = "no" if runtime.precision == "fp32" else runtime.precision
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision per process otherwise
    return Accelerator(cpu=on_cpu, mixed_precision=mixed, gradient_accumulation_steps=accumulation)
