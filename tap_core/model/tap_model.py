"""The whole model of one device: frozen encoders and backbone, and two sets of trainable components.

It maps component names to parameters, loads and reads them strictly, and runs a task's batch through the components of
one parameter set. It does not know training, rounds or files (docs/method.md section 3).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tap_core.components import Modality, decoder, encoder, family, owned_components
from tap_core.errors import UsageError
from tap_core.foundations.base import Foundation
from tap_core.foundations.preprocessor import Preprocessor
from tap_core.model import adapters
from tap_core.model.adapters import PARAMETER_SETS, ParameterSet
from tap_core.model.backbone import Backbone
from tap_core.model.encoders import AdaptedEncoder, AdaptedEncoders
from tap_core.names import ComponentName, TaskName
from tap_core.seeds import derive_seed
from tap_core.settings.federation import FederationConfig, TaskConfig
from tap_core.tasks import task_kind
from tap_core.tasks.batch import TaskBatch
from tap_core.tasks.decoders import HeadSizes, TextDecoder, Tokens, pool

Tensors = dict[ComponentName, dict[str, np.ndarray]]
"""Component name to tensor name to array."""


class TapModel(nn.Module):
    """One frozen foundation, with a ``federated`` and a ``personal`` value of every component that ``tasks`` use."""

    def __init__(self, config: FederationConfig, tasks: Sequence[TaskConfig], foundation: Foundation) -> None:
        """Raises UsageError if the foundation is too small for the federation's settings."""
        super().__init__()
        self.config = config
        self.tasks = {task.name: task for task in tasks}
        self.components = owned_components(tasks)
        self.hidden = foundation.hidden
        self.embeddings = foundation.word_embeddings  # a frozen parameter: it moves to a device with the model
        self.preprocessor = Preprocessor(foundation, text_length=config.training.text_length)
        modalities: list[Modality] = [m for m in ("image", "text") if encoder(m) in self.components]
        encoders, blocks = foundation.split(config.model.stage_layers)
        deepest = max(len(found.blocks) for found in encoders.values())
        asked = config.lora.encoder_layers or 0
        if asked > deepest:
            lower = f"have {deepest} layers at most; lower it, or leave it out for adapters in all of them"
            have = lower if deepest else "have no layers; leave it out"
            raise UsageError(
                f"lora.encoder_layers = {asked} and the encoders of a {foundation.family} foundation {have}"
            )
        self.encoders = AdaptedEncoders({m: AdaptedEncoder(encoders[m], m, config.lora) for m in modalities})
        self.backbone = Backbone(blocks, len(blocks) // 2, self.components, config.lora)
        sizes = HeadSizes(
            hidden=foundation.hidden,
            heads=blocks[0].heads,
            words=foundation.word_embeddings.shape,
            classifier_width=config.model.classifier_width,
            image_width=config.model.image_decoder_width,
            text_width=config.model.text_decoder_width,
            text_layers=config.model.text_decoder_layers,
        )
        self.decoders = nn.ModuleDict()
        for task in tasks:
            for parameter_set in PARAMETER_SETS:
                head = task_kind(task.kind).head(task, sizes)
                self.decoders[adapters.adapter_name(parameter_set, decoder(task.name))] = head
        self._parameters_of = {
            parameter_set: {name: self._find_parameters(parameter_set, name) for name in self.components}
            for parameter_set in PARAMETER_SETS
        }

    def _find_parameters(self, parameter_set: ParameterSet, component: ComponentName) -> dict[str, nn.Parameter]:
        match family(component):
            case "encoder":
                return self.encoders[component.split("/")[1]].parameters_of(parameter_set)
            case "decoder":
                return dict(self.decoders[adapters.adapter_name(parameter_set, component)].named_parameters())
            case _:
                return adapters.adapter_parameters(self.backbone, parameter_set, component)

    def trainable(self, parameter_set: ParameterSet) -> dict[str, nn.Parameter]:
        """Every trainable parameter of a set as ``component:tensor``, sorted, so that sums over them are repeatable."""
        named = {f"{c}:{n}": p for c, group in self._parameters_of[parameter_set].items() for n, p in group.items()}
        return dict(sorted(named.items()))

    def state(self, parameter_set: ParameterSet, components: Iterable[ComponentName] | None = None) -> Tensors:
        """float32 copies of the set's components (all of them by default)."""
        names = self.components if components is None else components
        groups = self._parameters_of[parameter_set]
        return {
            name: {key: groups[name][key].detach().float().cpu().numpy().copy() for key in sorted(groups[name])}
            for name in names
        }

    @torch.no_grad()
    def load(self, parameter_set: ParameterSet, tensors: Tensors) -> None:
        """Copy every owned component into a set, strictly (docs/method.md section 8, trap 1).

        Raises ValueError unless ``tensors`` holds each tensor of each owned component in its shape. Components that
        this model does not own are an error too.
        """
        _require_equal("components", set(self.components), set(tensors))
        for name, group in self._parameters_of[parameter_set].items():
            _require_equal(f"tensors of {name}", set(group), set(tensors[name]))
            for key, parameter in group.items():
                value = tensors[name][key]
                if tuple(value.shape) != tuple(parameter.shape):
                    raise ValueError(f"{name}:{key} has shape {value.shape}; expected {tuple(parameter.shape)}")
                parameter.copy_(torch.from_numpy(value.astype(np.float32)))

    def initialise(self, seed: int) -> None:
        """Set every component of both sets to version 0, each seeded by its own name: the pretrained function."""
        for name in self.components:
            component_seed = derive_seed(seed, "version 0", name)
            if family(name) == "decoder":
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(component_seed)
                    module = self.decoders[adapters.adapter_name("federated", name)]
                    for part in module.modules():
                        reset = getattr(part, "reset_parameters", None)
                        if reset is not None:
                            reset()
            else:
                generator = torch.Generator().manual_seed(component_seed)
                adapters.initialise_adapter(self._parameters_of["federated"][name], generator)
        self.load("personal", self.state("federated"))

    def recompute(self, on: bool) -> None:
        """Whether layers' activations are computed again in the backward pass instead of being kept (checkpointing)."""
        self.backbone.recompute = on
        for adapted in self.encoders.values():
            adapted.recompute = on

    def encode(self, batch: TaskBatch, parameter_set: ParameterSet) -> Tokens:
        """The backbone's tokens for a batch of one task."""
        streams: dict[Modality, Tensor] = {}
        masks: dict[Modality, Tensor | None] = {}
        whole: list[Tensor] = []
        for modality in batch.task.inputs:
            inputs, mask = batch.inputs(modality)
            stream = self.encoders[modality](inputs, mask, parameter_set, batch.prefixes.get(modality))
            streams[modality], masks[modality] = stream, mask
            whole.append(stream.new_ones(stream.shape[:2], dtype=torch.bool) if mask is None else mask)
        values = self.backbone(streams, masks, batch.task.kind, parameter_set)
        return Tokens(values, torch.cat(whole, dim=1), tuple(x.shape[1] for x in streams.values()))

    @torch.no_grad()
    def frozen_features(self, batch: TaskBatch) -> Tensor:
        """What the pretrained encoders make of a batch's inputs, no adapters and no backbone: for each modality the
        mean of its tokens, of length one, side by side: float32 (batch, sum of the encoders' widths)."""
        parts = []
        for modality in batch.task.inputs:
            inputs, mask = batch.inputs(modality)
            tokens = self.encoders[modality].frozen(inputs, mask)
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
            pooled = pool(Tokens(tokens.float(), mask, (tokens.shape[1],)))
            parts.append(torch.nn.functional.normalize(pooled, dim=-1))
        return torch.cat(parts, dim=-1)

    def decode(self, task: TaskConfig, tokens: Tokens, target: Tensor, parameter_set: ParameterSet) -> Tensor:
        """The decoder's output (batch, ...); for text the logits (batch, words, V).

        For text, ``target`` is fed in as the words before each word (teacher forcing); padding in it is harmless.
        """
        module = self.decoder(task.name, parameter_set)
        if isinstance(module, TextDecoder):
            words = target[:, :-1].clamp(min=0)
            return module(tokens.values, tokens.mask, words, self.embeddings)[0]  # type: ignore[no-any-return]
        return module(tokens)  # type: ignore[no-any-return]

    def forward(self, batch: TaskBatch, parameter_set: ParameterSet) -> Tensor:
        """The output of ``decode`` for a batch of one task, through the components of one set."""
        return self.decode(batch.task, self.encode(batch, parameter_set), batch.target, parameter_set)

    def decoder(self, task_name: TaskName, parameter_set: ParameterSet) -> nn.Module:
        return self.decoders[adapters.adapter_name(parameter_set, decoder(task_name))]


def build_model(config: FederationConfig, tasks: Sequence[TaskConfig], foundation: Foundation) -> TapModel:
    """The model of a device with ``tasks``, at version 0 of every component."""
    model = TapModel(config, tasks, foundation)
    model.initialise(config.seed)
    return model


def _require_equal(what: str, expected: set[str], given: set[str]) -> None:
    if expected != given:
        missing, unknown = sorted(expected - given), sorted(given - expected)
        raise ValueError(f"{what}: missing {missing or 'none'}, unknown {unknown or 'none'}")
