"""The simulated peak of a training step against what the profiler saw PyTorch's allocator do in the real one.

Not the same tracker on both sides: the profiler's events come from the allocator, which knows nothing of storages.
"""

from __future__ import annotations

from itertools import product

import pytest
import real_step

from pefttool.config.registry import Registry
from pefttool.forecast import simulate

SMOLLM2, MINILM = ("chat", ()), ("text-classification", ("0", "1"))
DINOV2, WHISPER = ("image-classification", tuple("0123456789")), ("speech-recognition", ())
CHECKPOINTING = ("none", "non-reentrant", "reentrant")

#: Adapters by what they can be combined with: quantizers, and ways of checkpointing.
POSSIBLE = {
    "lora": (("null", "nf4", "fp4", "int8"), CHECKPOINTING),
    "prefix": (("null", "nf4", "int8"), CHECKPOINTING),
    "prefix:attention": (("null",), ("none",)),
    "head": (("null", "nf4", "int8"), ("none",)),
    "full": (("null",), CHECKPOINTING),
}


def cases() -> list[object]:
    found = []
    for model, shapes in ((MINILM, ((8, 33), (2, 500))), (SMOLLM2, ((3, 33), (1, 2048)))):
        for adapter, (quantizers, ways) in POSSIBLE.items():
            for quantizer, way, shape in product(quantizers, ways, shapes):
                plain = (adapter, quantizer, way) == ("lora", "nf4", "none")
                quick = shape == (8, 33) or (plain and shape != (1, 2048))
                case = (*model, adapter, quantizer, way, *shape)
                name = "-".join(map(str, (model[0], *case[2:])))
                found.append(pytest.param(*case, marks=() if quick else pytest.mark.slow, id=name))
    for model, shape in ((DINOV2, (8, 26)), (WHISPER, (1, 20))):
        for adapter, way in product(("lora", "prefix"), CHECKPOINTING[:2]):
            case = (*model, adapter, "null", way, *shape)
            found.append(pytest.param(*case, marks=pytest.mark.slow, id=f"{model[0]}-{adapter}-{way}"))
    return found


@pytest.mark.parametrize(("task", "labels", "adapter", "quantizer", "way", "rows", "tokens"), cases())
def test_the_simulated_peak_is_the_allocators(registry: Registry, task, labels, adapter, quantizer, way, rows, tokens):
    adapter, _, implementation = adapter.partition(":")
    settings = (f"quantize={quantizer}", f"train.gradient_checkpointing={way}", f"train.sequence_length={tokens}")
    settings += (f"adapter.implementation={implementation}",) if implementation else ()
    chosen = real_step.planned(registry, adapter, task, *settings)
    estimate = simulate.peak(chosen, chosen.setting(labels), rows, tokens)
    assert sum(estimate.parts.values()) == estimate.peak_bytes
    assert estimate.peak_bytes == pytest.approx(real_step.measured(chosen, labels, rows, tokens), rel=0.01)


@pytest.mark.slow  # compiling takes half a minute
@pytest.mark.parametrize(
    ("task", "labels", "adapter", "rows", "tokens"),
    [
        (*MINILM, "lora", 8, 33),
        (*MINILM, "lora", 2, 500),
        (*MINILM, "full", 8, 33),
        (*SMOLLM2, "lora", 3, 33),
    ],
)
def test_what_is_compiled_takes_no_more_than_what_was_simulated(
    registry: Registry, task, labels, adapter, rows, tokens
):
    """`train.compile` is planned as if nothing were compiled: what fits so fits compiled, too."""
    settings = ("train.compile=true", f"train.sequence_length={max(tokens, 64)}")
    chosen = real_step.planned(registry, adapter, task, *settings)
    estimate = simulate.peak(chosen, chosen.setting(labels), rows, tokens)
    assert real_step.measured(chosen, labels, rows, tokens) <= estimate.peak_bytes * 1.01
    assert any("compile" in notice for notice in chosen.notices)
