"""The federation's settings: `federation.toml` as a frozen pydantic model (its terms: docs/method.md section 6).

It knows the file format and the limits of each value. It does not know tensors, devices or sockets, and needs no torch.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from tap_core.algorithms import ALGORITHMS
from tap_core.components import Modality
from tap_core.errors import UsageError
from tap_core.names import TaskName
from tap_core.samplers import SAMPLERS
from tap_core.settings.base import AlgorithmSettings, Name, Settings, TaskField, one_of
from tap_core.settings.toml import explain
from tap_core.tasks import KINDS, task_kind


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names a value twice")
    return values


KindName = Annotated[str, one_of(KINDS)]
"""The name of a task kind (`tap_core.tasks.KINDS`)."""


class TaskConfig(Settings):
    """One task of the federation: t(o), M(o) and what its decoder must put out."""

    name: TaskField = Field(description="Filled in from the table's name.")
    kind: KindName = Field(description="What the task is: a name of `tap_core.tasks.KINDS`.")
    inputs: Annotated[tuple[Modality, ...], AfterValidator(_distinct)] = Field(
        min_length=1, description="Modalities of its examples: image, text or both."
    )
    classes: Annotated[tuple[str, ...], AfterValidator(_distinct)] = Field(
        default=(), description="Class names, for kinds that have classes, in the order of the decoder's outputs."
    )
    length: int = Field(default=32, ge=2, le=1024, description="Most target tokens, for text_generation.")

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "TaskConfig":
        task_kind(self.kind).check(self)
        return self


class LoraRank(Settings):
    """Rank r and alpha of one group of adapters; the adapter's output is scaled by alpha / r."""

    rank: int = Field(ge=1, le=1024, description="Rank r: the inner width of A and B.")
    alpha: float = Field(gt=0, description="Alpha: the output of an adapter is scaled by alpha / rank.")


class LoraConfig(Settings):
    """Ranks of the three groups of adapters and the dropout before them."""

    encoder: LoraRank = Field(default=LoraRank(rank=8, alpha=16), description="Adapters of the encoders.")
    attention: LoraRank = Field(
        default=LoraRank(rank=16, alpha=32), description="Adapters of the backbone's attention: query and value."
    )
    expert: LoraRank = Field(
        default=LoraRank(rank=4, alpha=8), description="Adapters of the backbone's experts: both feed-forward layers."
    )
    encoder_layers: int | None = Field(
        default=None,
        ge=1,
        description="Adapters in the last so many layers of each encoder alone: what the layers below make of an "
        "example is computed once; left out: in all of them. For foundations whose encoders have layers: FLAVA, two "
        "towers; not ViLT.",
    )
    dropout: float = Field(default=0.3, ge=0, lt=1, description="Dropout of what goes into an adapter, in training.")


class ModelConfig(Settings):
    """Sizes of what is built around the frozen encoders (docs/method.md section 3)."""

    stage_layers: int | None = Field(
        default=None,
        ge=1,
        description="L: MoTE layers, and as many MoME layers; left out: the foundation's own (ViLT 4, else 1).",
    )
    classifier_width: int = Field(
        default=128, ge=8, description="Width of the inner layer of decoders that put out a few numbers."
    )
    text_decoder_layers: int = Field(default=2, ge=1, description="Layers of decoders that write text.")
    text_decoder_width: int = Field(
        default=256, ge=8, description="Width of these layers; at most the hidden size is used."
    )
    image_decoder_width: int = Field(default=128, ge=8, description="Channels of the first transposed convolution.")


UPDATE_NORM_PATTERN = r"^(none|(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?x?)$"


def _as_text(value: Any) -> Any:
    """TOML may say ``5.0`` as well as ``"5.0"``."""
    return repr(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def _is_limit(value: str) -> str:
    match = re.fullmatch(UPDATE_NORM_PATTERN, value)
    if not match or (value != "none" and not 0 < float(value.removesuffix("x")) < math.inf):
        raise ValueError("is a number above 0, a factor above 0 as in '10x', or 'none'")
    return value


Aggregation = Literal["mean", "trimmed_mean", "median"]
"""How the updates of a component become its next version."""


class RoundsConfig(Settings):
    """How rounds are made up, when they close, and which updates count."""

    sampler: Annotated[str, one_of(SAMPLERS)] = Field(
        default="uniform", description="How the devices of a round are drawn."
    )
    total: int = Field(default=200, ge=1, description="T, the number of rounds.")
    clients_per_round: int = Field(default=2, ge=1, description="Devices sampled for each round.")
    min_devices: int = Field(
        default=1, ge=1, description="Devices that must have joined before the first round starts."
    )
    min_updates: int = Field(default=1, ge=1, description="Updates without which a round fails and changes nothing.")
    deadline: float = Field(
        default=3600, gt=0, le=1e8, description="Seconds after which a round closes without the missing."
    )
    min_cohort: int = Field(
        default=2,
        ge=1,
        description="Owners that a component needs to be federated, and that must report before it is updated; with "
        "fewer enrolled it stays at home, on its owners' devices.",
    )
    aggregation: Aggregation = Field(
        default="mean", description="mean (weighted by examples), trimmed_mean or median (each device counts the same)."
    )
    server: Literal["plain", "momentum", "adam"] = Field(
        default="plain",
        description="What the coordinator makes of a round's average: all of it, or a step of FedOpt.",
    )
    server_rate: float = Field(default=1.0, gt=0, description="Learning rate of momentum and adam at the coordinator.")
    server_momentum: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    server_second: float = Field(default=0.99, ge=0, lt=1, description="Decay of adam's second moment.")
    server_epsilon: float = Field(default=1e-3, gt=0, description="Of adam: how much change counts as little.")
    factors: Literal["both", "alternate", "share_a"] = Field(
        default="both",
        description="Of each adapter B A: both factors are averaged, each on its own; or rounds train B and A in turn, "
        "so that the average of the products is exact; or B stays with each device.",
    )
    trim: float = Field(
        default=0.2, gt=0, lt=0.5, description="Share of the updates that trimmed_mean leaves out at either end."
    )
    max_update_norm: Annotated[str, BeforeValidator(_as_text), AfterValidator(_is_limit)] = Field(
        default="10x",
        description="Largest norm of a component's update: a number, or a factor (as in '10x') of the running median "
        "of those accepted, and then never more than the optimizer can do; 'none' for no limit.",
    )
    max_strikes: int = Field(
        default=3, ge=1, description="Rejected updates, none accepted between, after which a device is sampled no more."
    )
    keep_versions: int = Field(
        default=10, ge=2, le=10_000, description="Versions of each component that are kept, for repair and rollback."
    )

    @model_validator(mode="after")
    def _quorum_can_be_met(self) -> "RoundsConfig":
        if self.min_updates > self.clients_per_round:
            raise ValueError("'min_updates' exceeds 'clients_per_round', so no round could ever succeed")
        if self.min_cohort > self.clients_per_round:
            raise ValueError(
                "'min_cohort' exceeds 'clients_per_round', so no component could ever be updated; sample more devices, "
                "or set min_cohort = 1 if a single device's update may be sent and read"
            )
        if self.aggregation != "mean" and self.clients_per_round < 3:
            raise ValueError(f"'aggregation' {self.aggregation!r} needs 'clients_per_round' of 3 or more")
        return self


def _rounds_or_auto(value: Any) -> Any:
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if value != "auto" and not is_number:
        raise ValueError("is a number of rounds, 0 or more, or 'auto'")
    return value


Shares = Literal["proportional", "equal"]
"""How a batch is shared among a device's tasks."""


class TrainingConfig(Settings):
    """One phase of local training (docs/method.md section 4, steps 2 and 4)."""

    steps: int = Field(default=20, ge=1, description="tau, optimizer steps per phase.")
    batch_size: int = Field(default=32, ge=1, description="Examples per batch, shared among the device's tasks.")
    shares: Shares = Field(
        default="proportional",
        description="A task's share of each batch: proportional to its training examples, or equal; one at the least.",
    )
    accumulation: int = Field(default=1, ge=1, description="Batches per optimizer step.")
    learning_rate: float = Field(default=2e-4, gt=0, description="AdamW's, of both sets in stage 1.")
    warmup_rounds: Annotated[int | Literal["auto"], BeforeValidator(_rounds_or_auto)] = Field(
        default="auto",
        description="Rounds in which the learning rate grows from a third to the whole; constant afterwards. 0: none; "
        "auto: a tenth of the rounds, 1 to 20.",
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's, decoupled; also of stage 2.")
    clip_norm: float = Field(
        default=1.0, gt=0, description="Norm that a step's gradient is clipped to; also of stage 2."
    )
    text_length: int = Field(default=256, ge=4, le=4096, description="Most tokens of an input text.")
    proximal: float = Field(
        default=0.0,
        ge=0,
        description="mu of FedProx: mu / 2 times the squared distance from the received values joins w's loss.",
    )
    decision_set: Literal["auto", "always"] = Field(
        default="auto",
        description="Whether examples are cut from the training items that the algorithm decides on and never trains "
        "on: if it needs them, or always, so that algorithms compare on equal training data.",
    )


def _settings_of_its_own(values: Any) -> Any:
    """The settings of the algorithm that the table names, as its own class says them."""
    if not isinstance(values, Mapping):
        return values
    name = values.get("name", "tap")
    try:
        settings = ALGORITHMS.named(name).Settings if isinstance(name, str) else AlgorithmSettings
        return settings.model_validate({"name": name, **values})
    except UsageError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        raise PydanticCustomError("algorithm", "{problem}", {"problem": explain(error, settings, whole="")}) from None


class EvaluationConfig(Settings):
    """How the personal models are measured on the test split."""

    beams: int = Field(default=1, ge=1, le=64, description="Beams of text generation; 1 is greedy.")
    meteor: bool = Field(default=False, description="Whether METEOR stands beside token F1; needs tap-edge[metrics].")
    bert_model: str = Field(
        default="", description="Local directory of the model that BERTScore compares texts with; empty for none."
    )


WireDtype = Literal["float32", "float16", "bfloat16"]
"""The types in which components may travel; `protocol.tensors.DTYPES` has the same."""


class WireConfig(Settings):
    """How components travel and rest."""

    dtype: WireDtype = Field(
        default="float32", description="Type of the components' values in transfers, files and averages."
    )


class FederationConfig(Settings):
    """The whole of `federation.toml`."""

    name: Name = Field(description="The federation's name, which devices must give too.")
    foundation: str = Field(min_length=1, description="Hub id or directory of the pretrained model.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="All that is drawn at random is derived from it.")
    algorithm: Annotated[SerializeAsAny[AlgorithmSettings], BeforeValidator(_settings_of_its_own)] = Field(
        default_factory=lambda: ALGORITHMS["tap"].Settings(),
        description="What devices do in a round and at the end: a name, and what that algorithm can be told.",
    )
    tasks: dict[TaskField, TaskConfig] = Field(min_length=1, description="The tasks by name.")
    model: ModelConfig = Field(default=ModelConfig(), description="Sizes of what is built around the frozen encoders.")
    lora: LoraConfig = Field(default=LoraConfig(), description="Ranks of the adapters and their dropout.")
    rounds: RoundsConfig = Field(
        default=RoundsConfig(), description="How rounds are made up, when they close, and which updates count."
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="One phase of local training.")
    evaluation: EvaluationConfig = Field(
        default=EvaluationConfig(), description="How the models are measured on the test split."
    )
    wire: WireConfig = Field(default=WireConfig(), description="How components travel and rest.")

    @property
    def cuts_decision_set(self) -> bool:
        """Whether a decision set is cut from each task's training items."""
        return self.training.decision_set == "always" or self.algorithm.needs_decision_set

    @model_validator(mode="before")
    @classmethod
    def _name_moved_tables(cls, values: Any) -> Any:
        moved = {"tap": "algorithm", "distillation": "algorithm.distillation"}
        for old in moved.keys() & values.keys() if isinstance(values, Mapping) else ():
            raise ValueError(f"table [{old}] is [{moved[old]}] now; rename it")
        if isinstance(values, Mapping) and "runtime" in values:
            raise ValueError("table [runtime] is each device's own; move it to client.toml")
        return values

    @model_validator(mode="before")
    @classmethod
    def _name_tasks(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and isinstance(values.get("tasks"), Mapping):
            tasks = {k: {"name": k, **v} if isinstance(v, Mapping) else v for k, v in values["tasks"].items()}
            return {**values, "tasks": tasks}
        return values

    def tasks_named(self, names: Iterable[TaskName]) -> tuple[TaskConfig, ...]:
        """Some of the federation's tasks.

        Args:
            names: Their names, in any order.

        Returns:
            The tasks, sorted by name.

        Raises:
            UsageError: The federation lacks one of them.
        """
        tasks = []
        for name in sorted(names):
            if name not in self.tasks:
                raise UsageError(
                    f"federation {self.name!r} has no task {name!r}; its tasks are {', '.join(sorted(self.tasks))}"
                )
            tasks.append(self.tasks[name])
        return tuple(tasks)
