"""What is known of a model before and after it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


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
