"""The options of `--adapter prefix`, and which of its two implementations they come to."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pefttool import Facts, Options, Problem

#: What peft can put a prefix before, and still call the model's own head.
TASK_TYPES = ("CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
PEFT, ATTENTION = "peft", "attention"


class PrefixOptions(Options):
    num_virtual_tokens: int = Field(10, ge=1, description="trained positions before the text, in every layer")
    init: Literal["auto", "activations", "random", "small"] = Field(
        "auto",
        description="how the prefix starts: `activations`: keys and values that the base computes for vocabulary"
        " tokens; `random`: normal noise; `small`: a tenth of it, so that the model starts close to the base; `auto`:"
        " `activations` for causal language models, else `random` through peft and `small` inside attention",
    )
    implementation: Literal["auto", "peft", "attention"] = Field(
        "auto",
        description="`peft`: through past_key_values, saved as peft does; `attention`: inside the attention function of"
        " any architecture that uses transformers' AttentionInterface, also with gradient checkpointing and packed"
        " rows; `auto`: `peft` where it can, else `attention`",
    )


def chosen(options: PrefixOptions, facts: Facts) -> str:
    """`peft` or `attention`: what was asked for, or what can."""
    if options.implementation != "auto":
        return options.implementation
    return PEFT if not peft_refuses(facts) else ATTENTION


def refused(options: PrefixOptions, facts: Facts) -> list[Problem]:
    """Why the implementation that was asked for cannot, or neither can."""
    if options.implementation == PEFT:
        return peft_refuses(facts)
    own, others = attention_refuses(facts), peft_refuses(facts)
    if own is None:
        return []
    if options.implementation == ATTENTION:
        return [Problem("adapter.implementation", f"'attention': {own}; use 'lora'")]
    if all(problem.key.startswith("train.") for problem in others):
        return others  # peft can, without these
    reasons = "; ".join(problem.message for problem in others)
    return [Problem("adapter.name", f"'prefix' cannot be inside the attention of this model ({own}), and {reasons}")]


def peft_refuses(facts: Facts) -> list[Problem]:
    """Why prefix tuning through peft cannot."""
    found = []
    if not facts.key_value_cache:
        message = "peft's prefix needs a model that takes past_key_values and an ordinary head, and"
        found.append(Problem("adapter.implementation", f"{message} {facts.architecture} is none; use 'lora'"))
    if facts.peft_task_type not in TASK_TYPES:
        message = f"peft's prefix works for its task types {', '.join(TASK_TYPES)}, and task {facts.task!r} is"
        kind = facts.peft_task_type or "none of peft's"
        found.append(Problem("adapter.implementation", f"{message} {kind}; use 'lora'"))
    if facts.recomputes:
        message = "a block that computes its activations again drops the keys and values of peft's prefix; use none"
        found.append(Problem("train.gradient_checkpointing", message))
    if facts.packed:
        message = "rows behind the first one would not see peft's prefix, or all of it; drop it"
        found.append(Problem("train.packing", message))
    return found


def attention_refuses(facts: Facts) -> str | None:
    """Why keys and values cannot be prepended inside the attention function, or None."""
    if facts.key_values:
        return None
    return f"{facts.architecture} does not take its attention function from transformers' AttentionInterface"
