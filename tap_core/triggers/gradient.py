"""The first-order change of the personal loss if one component alone were replaced (docs/method.md section 9).

    gain of r = -<grad_r L(x), w_r - x_r>

It scores components and not sets, so that each component is decided by itself. Shapes: g groups of examples.
"""

from typing import TYPE_CHECKING

import numpy as np

from tap_core.names import ComponentName
from tap_core.triggers.base import ComponentIndicator

if TYPE_CHECKING:
    from tap_core.algorithms.device import Local
    from tap_core.settings.federation import TaskConfig

GROUPS = 32
"""Groups of examples, at most: a backward pass each, and enough for a standard error."""


class Gradient(ComponentIndicator):
    def gains(self, local: "Local", task: "TaskConfig") -> "dict[ComponentName, np.ndarray]":
        """By component that the task uses, how much each group's mean loss falls to first order, float64 (g,)."""
        import torch

        from tap_core.components import components_of_task
        from tap_core.tasks import task_kind

        model = local.model
        personal, federated = model.trainable("personal"), model.trainable("federated")
        components = components_of_task(task)
        used = {name: x for name, x in personal.items() if name.partition(":")[0] in components}
        size = -(-len(local.data[task.name].decision) // GROUPS)
        gains: dict[ComponentName, list[float]] = {name: [] for name in components}
        model.eval()
        for parameter in used.values():
            parameter.requires_grad_(True)
        for batch in local.held_out(task, size) if size else ():
            with local.accelerator.autocast():
                output = model(batch, "personal")
            loss = task_kind(task.kind).loss(output, batch.target).mean()
            slopes = torch.autograd.grad(loss, list(used.values()), materialize_grads=True)
            found = dict.fromkeys(gains, 0.0)
            for (name, x), slope in zip(used.items(), slopes, strict=True):
                step = (federated[name] - x).detach().double()
                found[ComponentName(name.partition(":")[0])] -= float((slope.double() * step).sum())
            for component, gain in found.items():
                gains[component].append(gain)
        for parameter in used.values():
            parameter.requires_grad_(False)
        return {component: np.array(found) for component, found in gains.items()}
