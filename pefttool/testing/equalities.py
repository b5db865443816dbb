"""What must not make a difference to an adapter: how rows lie in a batch, and how the frozen weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pefttool.testing.bench import TOLERANCE, AdapterCase, Bench, toy_setting
from pefttool.testing.tensors import close, content, same_gradient
from pefttool.testing.toys import TOYS

if TYPE_CHECKING:
    from torch import Tensor

#: Two ways of one step: its loss, and the gradients by parameter.
Found = tuple[float, Mapping[str, "Tensor"]]


def packing_changes_nothing(case: AdapterCase) -> None:
    """Rows that lie one behind another in one sequence give the loss and the gradients of padded ones, each to 1e-5.

    Asked of adapters that keep rows apart, on models that can.
    """
    task = TOYS[case.kind]
    found: list[Found] = []
    for packing in (False, True):
        bench = Bench.load(case)
        bench.facts = replace(bench.facts, packed=True)
        if not task.packs or case.adapter.check(case.chosen, bench.facts):
            return
        added = case.adapter.added_positions(case.chosen, bench.facts)
        if added or not case.adapter.keeps_rows_apart(case.chosen, bench.facts):
            return
        adapted = bench.attach()
        reason = task.check_packing(adapted.model, [], None, toy_setting(packing=True))
        case.require(reason is None, f"says that it keeps rows apart, and the adapted model cannot: {reason}")
        bench.leave_start(adapted)
        found.append(bench.gradients(adapted, [range(8)], packing))
    require_same_step(case, "padded and packed rows", *found)


def streaming_changes_nothing(case: AdapterCase) -> None:
    """Beside weights that are fetched for a product and dropped, loss and gradients are equal bit by bit.

    Asked where the quantizer can stream and the adapter does not refuse it.
    """
    if case.quantizer is None or not case.quantizer.streams:
        return
    found: list[Found] = []
    for streams in (False, True):
        bench = Bench.load(case)
        bench.facts = replace(bench.facts, streamed=True)
        if case.adapter.check(case.chosen, bench.facts):
            return
        if streams:
            _stream(bench)
        found.append(_step(bench, "beside weights that are fetched"))
    (loss, gradients), (other, others) = found
    case.require(loss == other, f"the loss is {other} beside streamed weights, and {loss} beside resident ones")
    changed = [n for n in gradients if n not in others or content(gradients[n]) != content(others[n])]
    case.require(not changed, f"the gradient of {changed[:1]} differs beside streamed weights")


def kernels_change_nothing(case: AdapterCase) -> None:
    """A quantised base gives the loss and the gradients of a plain one with the dequantised weights, each to 1e-5."""
    if case.quantizer is None:
        return
    found: list[Found] = []
    for plain in (False, True):
        bench = Bench.load(case)
        if plain:
            _dequantize(bench)
        found.append(_step(bench, "beside dequantised weights"))
    require_same_step(case, "quantised and dequantised weights", *found)


def _step(bench: Bench, where: str) -> Found:
    try:
        adapted = bench.attach()
        bench.leave_start(adapted)
        return bench.gradients(adapted, [range(8)])
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        bench.case.fail(f"cannot train {where}: {' '.join(str(error).split())}")


def _stream(bench: Bench) -> None:
    """Put in the place of every quantised layer one that holds nothing, and fetches what it held."""
    import torch

    quantization = bench.case.quantization
    assert quantization is not None
    quantizer = quantization.quantizer
    for name in bench.facts.linear_modules:
        layer: Any = bench.model.get_submodule(name)
        stored = dict(quantizer.stored(layer))
        bare = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        stand_in: Any = quantization.skeleton(bare)
        quantizer.stream(stand_in, partial(_copies, stored))
        if layer.bias is not None:
            stand_in.bias = torch.nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        bench.model.set_submodule(name, stand_in.eval())


def _copies(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {part: tensor.clone() for part, tensor in stored.items()}


def _dequantize(bench: Bench) -> None:
    """Put in the place of every quantised layer a plain one, of the weight that it multiplies by."""
    import torch

    quantizer = bench.case.quantizer
    assert quantizer is not None
    for name in bench.facts.linear_modules:
        layer: Any = bench.model.get_submodule(name)
        plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        with torch.no_grad():
            plain.weight.copy_(quantizer.dequantize(layer))
            if layer.bias is not None:
                plain.bias.copy_(layer.bias)
        bench.model.set_submodule(name, plain.requires_grad_(False).eval())
    bench.facts = replace(bench.facts, quantizer=None)


def require_same_step(case: AdapterCase, what: str, one: Found, two: Found) -> None:
    case.require(abs(one[0] - two[0]) <= TOLERANCE * abs(one[0]), f"the loss is {one[0]}, then {two[0]}: {what}")
    require_same_gradients(case, what, one[1], two[1])


def require_same_gradients(case: AdapterCase, what: str, one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> None:
    """The same parameters have one, and each is equal to 1e-5."""
    odd = sorted(set(one) ^ set(two))
    case.require(not odd, f"{odd[:1]} has a gradient in only one of {what}")
    largest = max(float(gradient.norm()) for gradient in one.values())
    for name, gradient in one.items():
        same = same_gradient(gradient, two[name], largest, TOLERANCE)
        off = close(gradient, two[name])
        case.require(same, f"the gradient of {name} differs by {off:.1e} between {what}")
