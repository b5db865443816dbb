"""The values that plugins are given and hand back. Torch appears only in annotations: importing this is cheap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    from torch import Tensor, nn


class Section(BaseModel):
    """Keys that somebody writes: unknown ones are refused, and a list of one is written as its one value, too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        """`-o task.ignore=City` is what people write, and error messages say, for `[City]`."""
        if not isinstance(given, Mapping):
            return given
        lists = {name for name, field in cls.model_fields.items() if get_args(field.annotation)[1:] == (...,)}
        single = str | int | float
        return {k: [v] if k in lists and isinstance(v, single) else v for k, v in given.items()}


class Options(Section):
    """The options of one adapter, task, quantizer or format: fields with a type, a default and a description.

    Everything derives from it: YAML keys, `-o adapter.r=32`, `pefttool adapters show`, the JSON Schema, the docs.
    """

    #: YAML reads `1` as a number, and it is a fine name of a column or a class all the same.
    model_config = ConfigDict(validate_default=True, coerce_numbers_to_str=True)


@dataclass(frozen=True)
class Problem:
    """Something that stands in the way of a run, found before anything is loaded.

    `key` is the user's own key, such as `adapter.r`; `message` names the value, what is allowed and the next step.
    """

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


@dataclass(frozen=True)
class Row:
    """One row of data and where it came from: `values` by column; `line` counts from 1 (a record, for Parquet)."""

    values: Mapping[str, Any]
    file: str = "<text>"
    line: int = 1

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class KeyValues:
    """What a module that attends makes of its input: keys `[B, heads, S, key_size]`, values likewise.

    `module` is its name; its attention function can be chosen (transformers' AttentionInterface).
    """

    module: str
    heads: int
    key_size: int
    value_size: int


@dataclass(frozen=True)
class Arranged:
    """Rows to train on and rows to judge by, with lines that the user should read of how they came to be."""

    train: tuple[Row, ...]
    eval: tuple[Row, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """What is known of the model and the run before any weight is loaded. Module names are in definition order.

    linear_modules      every linear layer (or a quantizer's stand-in) of the backbone; no router that is made of one,
                        and answers with several tensors
    expert_tensors      parameters of the backbone that hold the weights of several experts, and are no linear layers
    weights             how many parameters of the whole model are what: "linear layers" of the backbone, "expert
                        tensors", "embeddings", "output layer", "convolutions", "others"
    transposed_modules  linear layers of the backbone whose weight is `[in_features, out_features]`: transformers'
                        `Conv1D`, of which GPT-2 is made
    attention_modules   the modules that compute attention
    layers              the repeated blocks of the backbone, first to last
    head_modules        new task heads: the core trains and saves them, whatever the adapter does
    output_modules      the pretrained output layer (`lm_head`), where there is one
    unused              modules and parameters that the task never calls: what trains there would have no gradient
    left_alone          modules that an adapter leaves as they are, unless it is asked to change them, too
    key_values          what of them has an attention function that can be chosen, and the keys that it is given
    key_value_cache     peft's prefix tuning fits: the model takes `past_key_values`, and its head is an ordinary one
    counts_positions    tokens stand at positions 0, 1, ..., unless the model is given other `position_ids`
    positions           the longest sequence the model has positions for (0: no limit known)
    sequence_length     the longest that the run will use (0: not known yet)
    parameters          how many the model has before it is quantised
    recomputable        its blocks can compute their activations again in the backward pass
    recomputes          the run will have them do so (`train.gradient_checkpointing`)
    packed              the run asks for rows one behind another in one sequence (`train.packing`)
    streamed            the blocks' linear weights are fetched for a product, and nowhere else: they cannot be read
    abstract            the model has no data (simulation): no data-dependent initialisation
    """

    architecture: str
    model_type: str = ""
    hidden_size: int = 0
    linear_modules: tuple[str, ...] = ()
    expert_tensors: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)
    transposed_modules: tuple[str, ...] = ()
    attention_modules: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    head_modules: tuple[str, ...] = ()
    output_modules: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    left_alone: tuple[str, ...] = ()
    key_values: tuple[KeyValues, ...] = ()
    key_value_cache: bool = False
    counts_positions: bool = False
    positions: int = 0
    sequence_length: int = 0
    parameters: int = 0
    recomputable: bool = False
    recomputes: bool = False
    packed: bool = False
    task: str = ""
    peft_task_type: str | None = None
    labels: tuple[str, ...] = ()
    quantizer: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    world_size: int = 1
    total_steps: int = 0
    seed: int = 0
    streamed: bool = False
    abstract: bool = False

    def used(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these modules or parameters that are called."""
        return _outside(self.unused, names)

    def changed(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these modules that are called, and are not better left as they are."""
        return _outside((*self.unused, *self.left_alone), names)


def _outside(modules: Iterable[str], names: Iterable[str]) -> tuple[str, ...]:
    within = tuple(f"{module}." for module in modules)
    return tuple(name for name in names if not f"{name}.".startswith(within))


@dataclass(frozen=True)
class Attached:
    """What `Adapter.attach` hands back.

    trainable           names in `model.named_parameters()` that the adapter trains (task heads are the core's)
    identity_at_init    the adapted model's outputs equal the base's before the first step
    modules             for an adapter that was told modules by name: the base's names of those that it changed. Every
                        trainable parameter has to be inside one of them, and each of them to hold one
    """

    model: nn.Module
    trainable: frozenset[str]
    identity_at_init: bool = True
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """What a task's methods may depend on besides the model and the rows; saved with the adapter.

    With `packing`, `collate` lays rows one behind another in one sequence, and `loss` keeps them apart. `fitted` is
    what `Task.fit` made of the training rows (empty while there are none: a plan). `epoch` counts from 0 in training,
    and is None elsewhere: what is changed in training only (augmentation) draws from `seed`, `epoch` and the row, so
    that a resumed run draws the same.
    """

    options: Any
    labels: tuple[str, ...] = ()
    fitted: Mapping[str, Any] = field(default_factory=dict)
    sequence_length: int = 512
    frozen_backbone: bool = False
    packing: bool = False
    generation: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    epoch: int | None = None


@dataclass(frozen=True)
class Loss:
    """A batch's loss as a sum over `weight` units (rows, trained tokens): the objective is sum/weight over a step.

    `outputs` is whatever `Task.decode` needs to turn this forward pass into predictions (or None).
    """

    sum: Tensor
    weight: Tensor
    outputs: Any = None


@dataclass(frozen=True)
class Loaded:
    """A pretrained model and what encodes its inputs (tokenizer, image processor, feature extractor)."""

    model: nn.Module
    processor: Any


@dataclass(frozen=True)
class DataProblem:
    """A record that is no row: where, what was found, what was expected."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"
