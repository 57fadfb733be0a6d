"""The settings of the machine that a device trains on. No torch: `tap_core.training.runtime` makes use of them."""

from typing import Literal

from pydantic import Field

from tap_core.settings.base import Settings


class Runtime(Settings):
    """How this machine trains."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes the GPU if there is one.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="fp32 is repeatable bit for bit.")
    force_precision: bool = Field(
        default=False, description="Take bf16 also on a CPU where it was measured to be slower than fp32."
    )
    threads: int = Field(default=0, ge=0, le=1024, description="CPU threads of training; 0 leaves it to torch.")
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="Megabytes that the activations of a training step may take; weights come on top.",
    )
    checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass instead of keeping them."
    )
    cache_mb: int = Field(
        default=4096, ge=0, description="Megabytes of disk for the output of encoder layers that are never trained."
    )
