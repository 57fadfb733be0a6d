"""Layers of transformers' models as `Block`s: which submodule plays which part, one table line a form of layer.

It knows names of submodules. It does not know models, files or what a block is used for.
"""

from collections.abc import Mapping

from torch import nn

from tap_core.errors import UsageError
from tap_core.foundations.base import Block

Form = Mapping[str, str]
"""The parts of a `Block` by the paths of the layer's submodules."""

_ATTENTION = {
    "q": "attention.attention.query",
    "k": "attention.attention.key",
    "v": "attention.attention.value",
    "out": "attention.output.dense",
}
_PROJECTIONS = {
    "q": "attention.q_proj",
    "k": "attention.k_proj",
    "v": "attention.v_proj",
    "out": "attention.o_proj",
}
_FEED_FORWARD = {
    "up": "intermediate.dense",
    "act": "intermediate.intermediate_act_fn",
    "down": "output.dense",
}
_MLP = {"up": "mlp.fc1", "act": "mlp.activation_fn", "down": "mlp.fc2"}

PRE_NORM: dict[str, Form] = {
    "FLAVA, ViLT": {"norm1": "layernorm_before", "norm2": "layernorm_after", **_ATTENTION, **_FEED_FORWARD},
    "ViT": {"norm1": "layernorm_before", "norm2": "layernorm_after", **_PROJECTIONS, **_MLP},
    "DINOv2": {
        "norm1": "norm1",
        "norm2": "norm2",
        **_PROJECTIONS,
        **_MLP,
        "scale1": "layer_scale1.lambda1",
        "scale2": "layer_scale2.lambda1",
    },
    "CLIP, SigLIP": {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        **_MLP,
    },
}
POST_NORM: dict[str, Form] = {
    "BERT": {
        "norm1": "attention.output.LayerNorm",
        "norm2": "output.LayerNorm",
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "out": "attention.output.dense",
        **_FEED_FORWARD,
    },
}


def as_block(layer: nn.Module, heads: int) -> Block:
    """A transformers layer by standard names, over the same tensors.

    Args:
        layer: A layer of a transformers model.
        heads: How many heads its attention has.

    Returns:
        A block whose parts are the layer's own.

    Raises:
        UsageError: The layer has none of the forms above.
    """
    for forms, pre_norm in ((PRE_NORM, True), (POST_NORM, False)):
        for form in forms.values():
            if all(part(layer, path) is not None for path in form.values()):
                return Block(
                    **{name: part(layer, path) for name, path in form.items()},  # type: ignore[arg-type]
                    heads=heads,
                    pre_norm=pre_norm,
                )
    raise UsageError(f"layers of the form {type(layer).__name__} are not known; take a model of another family")


def part(module: nn.Module, path: str) -> object | None:
    """What ``module`` has at a dotted path of names, None if it has nothing there."""
    inside: object | None = module
    for name in path.split("."):
        inside = getattr(inside, name, None)
    return inside
