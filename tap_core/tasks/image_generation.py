"""Image generation: a small image, from any inputs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tap_core.examples import Example
from tap_core.tasks.base import Facts, TaskKind
from tap_core.tasks.metrics import MSE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tap_core.foundations.preprocessor import Preprocessor
    from tap_core.settings.federation import TaskConfig
    from tap_core.tasks.decoders import HeadSizes

GENERATED_IMAGE_SIZE = 64
"""Side of a generated image in pixels (docs/method.md section 3)."""


class ImageGeneration(TaskKind):
    """Squared error of normalised pixels. A target is a uint8 image; answers are normalised (3, 64, 64)."""

    name = "image_generation"
    words = "image generation"
    target = "image"
    folder = True
    output = "pixels"
    margin = 0.005
    beta = 0.1
    metrics = (MSE,)
    loss_unit = "squared error per pixel"

    def encode(
        self, task: "TaskConfig", examples: Sequence[Example], preprocessor: "Preprocessor", facts: Facts
    ) -> np.ndarray:
        """Normalised pixels, float32 (n, 3, 64, 64)."""
        return np.stack([self.wanted(e.target, preprocessor) for e in examples])

    def head(self, task: "TaskConfig", sizes: "HeadSizes") -> "nn.Module":
        from tap_core.tasks.decoders import ImageDecoder

        return ImageDecoder(sizes.hidden, sizes.image_width, GENERATED_IMAGE_SIZE)

    def loss(self, output: "Tensor", target: "Tensor") -> "Tensor":
        """Mean squared error of each image: (n, 3, 64, 64) twice."""
        return (output.float() - target).square().mean(dim=(1, 2, 3))

    def divergence(self, student: "Tensor", teacher: "Tensor", target: "Tensor", temperature: float) -> "Tensor":
        """There are no classes: the mean squared difference of the outputs, without T."""
        return self.loss(student, teacher.float())

    def answers(self, output: np.ndarray, task: "TaskConfig", facts: Facts) -> list[Any]:
        return list(output)

    def wanted(self, target: Any, preprocessor: "Preprocessor") -> np.ndarray:
        return preprocessor.image(np.asarray(target), GENERATED_IMAGE_SIZE)

    def trivial(self, task: "TaskConfig", train: Sequence[Any], test: Sequence[Example]) -> Mapping[str, Sequence[Any]]:
        mean = np.mean(train, axis=0, dtype=np.float64)
        return {"mean image": [mean] * len(test)}

    def shown(self, answer: Any, task: "TaskConfig") -> Any:
        return answer

    def predict(self, output: np.ndarray, task: Any) -> dict[str, Any]:
        """``pixels``, normalised (3, 64, 64)."""
        return {"pixels": output}

    def line(self, facts: Mapping[str, Any]) -> str:
        return f"{facts['path']} ({facts['width']} x {facts['height']})"
