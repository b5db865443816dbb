"""The contract of a quantizer, on the tiny decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pefttool.api.facts import Facts
from pefttool.api.quantizer import Quantizer
from pefttool.models.quantization import Quantization
from pefttool.testing.bench import ContractViolation, load_base, require, toy_batch, toy_outputs, toy_setting
from pefttool.testing.tensors import changes, close, snapshot, storage_bytes
from pefttool.testing.toys import TOYS

if TYPE_CHECKING:
    from torch import nn

#: Relative differences: of a 4-bit weight from its original, and of a layer's output from x times its own weight
#: (int8 rounds the activations too).
WEIGHT, OUTPUT = 0.2, 0.02


def check_quantizer(quantizer: Quantizer, options: Any = None) -> None:
    """Outputs near the base's, weights that can be read, gradients that pass through, a stand-in of the same size,
    streaming that changes nothing (where it is offered), and bytes that stay. Raises ContractViolation.

    `options` are the quantizer's own, by default every one at its default.
    """
    how = Quantization.default(quantizer) if options is None else Quantization(quantizer, options)
    what = f"quantizer {quantizer.name!r}"
    plain, facts = load_base("decoder")
    refusal = how.refuses(facts)
    require(refusal is None, what, f"refuses the tiny decoder: {refusal}")
    reason = how.refuses(Facts(architecture="NoLinear"))
    require(bool(reason) and len(str(reason)) > 20, what, f"refuses a model without linear layers with {reason!r}")
    model, facts = load_base("decoder", how)
    require(bool(facts.linear_modules), what, "leaves no linear layers: what it puts in their place must be nn.Linear")
    off = close(toy_outputs("decoder", plain), toy_outputs("decoder", model))
    require(0 < off < 0.5, what, f"outputs differ by {off:.2f} from the unquantised model's")
    for name in facts.linear_modules:
        layer, original = model.get_submodule(name), plain.get_submodule(name)
        _check_layer(how, f"{what}: {name}", layer, original)
    _check_stays(how, what)
    model, _ = load_base("decoder", how)
    if type(quantizer).round_trip is not Quantizer.round_trip:
        for name in facts.linear_modules:
            again = how.round_trip(plain.get_submodule(name).weight.detach())  # type: ignore[operator]
            same = again.equal(quantizer.dequantize(model.get_submodule(name)))
            require(same, f"{what}: {name}", "round_trip gives another weight than dequantize of the loaded layer")
    if quantizer.streams:
        for name in facts.linear_modules:
            _check_streams(how, f"{what}: {name}", model.get_submodule(name), plain.get_submodule(name))


def _check_layer(how: Quantization, what: str, layer: nn.Module, original: Any) -> None:
    import torch

    weight = how.quantizer.dequantize(layer)
    shape = (original.out_features, original.in_features)
    require(tuple(weight.shape) == shape, what, f"dequantize gives {tuple(weight.shape)}, expected {shape}")
    off = close(original.weight, weight.float())
    require(off < WEIGHT, what, f"the dequantised weight differs by {off:.2f} from the original")
    x = torch.randn(3, original.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.eval()
        off = close(x @ weight.float().T, layer(x).float())
    require(off < OUTPUT, what, f"output differs by {off:.1e} from x times the dequantised weight")
    layer.train()
    upstream = torch.randn(3, original.out_features, generator=torch.Generator().manual_seed(1))
    x.requires_grad_(True)
    output = layer(x)
    gradient = torch.autograd.grad(output, x, upstream, allow_unused=True)[0] if output.requires_grad else None
    layer.eval()
    if gradient is None:
        raise ContractViolation(f"{what}: no gradient passes through it")
    off = close(upstream @ weight.float(), gradient)
    require(off < OUTPUT, what, f"the input's gradient differs by {off:.1e} from that of the dequantised weight")
    x = x.detach()
    stand_in = how.skeleton(original)
    stored, real = storage_bytes(stand_in), storage_bytes(layer)
    require(stored == real, what, f"the skeleton stores {stored} bytes, the real layer {real}")
    found = tuple(stand_in(x).shape)
    require(found == tuple(upstream.shape), what, f"the skeleton's output is {found}, not {tuple(upstream.shape)}")


def _check_streams(how: Quantization, what: str, layer: nn.Module, original: Any) -> None:
    """A stand-in that fetches `stored` answers as the layer does, bit by bit, and keeps nothing of it."""
    import torch

    stored = dict(how.quantizer.stored(layer))
    with torch.device("meta"):
        bare = torch.nn.Linear(original.in_features, original.out_features, bias=original.bias is not None)
        stand_in = how.skeleton(bare.to(original.weight.dtype))
    parts = {n: (p.shape, p.dtype) for n, p in stand_in.named_parameters() if n != "bias"}
    found = {name: (tensor.shape, tensor.dtype) for name, tensor in stored.items()}
    require(found == parts, what, f"stored gives {found}, the skeleton has {parts}")
    fetched: list[int] = []

    def fetch() -> dict[str, Any]:
        fetched.append(1)
        return {name: tensor.clone() for name, tensor in stored.items()}

    how.quantizer.stream(stand_in, fetch)
    kept = storage_bytes(stand_in)
    bias: Any = getattr(layer, "bias", None)
    if bias is not None:
        stand_in.bias = torch.nn.Parameter(bias.detach().clone(), requires_grad=False)
        kept -= bias.numel() * bias.element_size()
    require(kept == 0, what, f"a streamed layer keeps {kept} bytes of its weight")
    x = torch.randn(3, original.in_features, generator=torch.Generator().manual_seed(2), requires_grad=True)
    outputs = [layer.train()(x), stand_in.train()(x)]
    layer.eval()
    gradients = [torch.autograd.grad(output, x, torch.ones_like(output))[0] for output in outputs]
    require(outputs[0].equal(outputs[1]), what, "a streamed layer's output differs from the layer's own")
    require(gradients[0].equal(gradients[1]), what, "a streamed layer's gradient differs from the layer's own")
    require(len(fetched) == 2, what, f"a streamed layer fetched {len(fetched)} times in a forward and backward pass")


def _check_stays(how: Quantization, what: str) -> None:
    """Evaluation, a training pass and another evaluation leave every byte as it was loaded, and give one answer."""
    model, _ = load_base("decoder", how)
    before = snapshot(model)
    first = toy_outputs("decoder", model)
    model.requires_grad_(False)
    model.get_input_embeddings().requires_grad_(True)  # type: ignore[operator]
    model.train()
    TOYS["decoder"].loss(model, toy_batch("decoder")[0], toy_setting()).sum.backward()  # type: ignore[no-untyped-call]
    model.eval()
    second = toy_outputs("decoder", model)
    changed = changes(before, snapshot(model))
    require(not changed, what, f"evaluation and training changed {changed[:1]}")
    require(first.equal(second), what, "one model gives two answers, before and after a training pass")
