"""The machine that a device trains on: which processor, which precision, how many threads; as an accelerator.

It knows accelerate, and how fast this machine multiplies in each precision. It does not know models.
"""

import functools
import time

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tap_core.errors import UsageError
from tap_core.settings.runtime import Runtime

_ROWS, _WIDTH, _TRIES = 256, 512, 3
"""The product that is measured, and how often: a quarter of a second where bf16 is emulated, a fiftieth elsewhere."""

_NOISE = 1.2
"""How much longer bf16 may take before it counts as slower: two measurements of one thing differ by less."""


@functools.cache
def bf16_slowdown() -> float:
    """How many times as long as in fp32 a matrix product and its gradients take in bf16 on this CPU.

    Measured at the first call of the process, well under a second; the best of a few tries each.
    """
    return _seconds(autocast=True) / _seconds(autocast=False)


def _seconds(*, autocast: bool) -> float:
    weight, x = torch.ones(_WIDTH, _WIDTH, requires_grad=True), torch.ones(_ROWS, _WIDTH, requires_grad=True)
    best = float("inf")
    for _ in range(_TRIES):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = x @ weight
        torch.autograd.grad(y.float().sum(), (weight, x))
        best = min(best, time.perf_counter() - began)
    return best


def is_on_cpu(runtime: Runtime) -> bool:
    """Whether training with these settings takes place on the CPU of this machine."""
    return runtime.device == "cpu" or not torch.cuda.is_available()


def check_runtime(runtime: Runtime) -> None:
    """Raise UsageError if the machine lacks the device or the precision, or if bf16 makes its CPU slower.

    The latter is measured only if it matters; `Runtime.force_precision` passes it over.
    """
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise UsageError('runtime.device is "cuda" and torch sees no CUDA device; set it to "auto" or "cpu"')
    if runtime.precision == "fp16" and is_on_cpu(runtime):
        raise UsageError('runtime.precision "fp16" needs a CUDA device; set it to "fp32" or "bf16"')
    matters = runtime.precision == "bf16" and is_on_cpu(runtime) and not runtime.force_precision
    if matters and (times := bf16_slowdown()) > _NOISE:
        raise UsageError(
            f'runtime.precision "bf16" takes {times:.1f} times as long as "fp32" on this CPU as measured; '
            'set it to "fp32", or set runtime.force_precision = true'
        )


def make_accelerator(runtime: Runtime, accumulation: int) -> Accelerator:
    """An accelerator for this machine. Raises UsageError as `check_runtime` does."""
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    check_runtime(runtime)
    mixed = "no" if runtime.precision == "fp32" else runtime.precision
    AcceleratorState._reset_state(reset_partial_state=True)  # accelerate keeps one precision per process otherwise
    return Accelerator(cpu=is_on_cpu(runtime), mixed_precision=mixed, gradient_accumulation_steps=accumulation)
