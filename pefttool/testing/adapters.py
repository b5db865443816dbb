"""The contract of an adapter, check by check. Every check runs on a fresh tiny model, in float32, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pefttool import peft_folder
from pefttool.attach import Adapted, attach
from pefttool.base import load_model
from pefttool.devices import Choice
from pefttool.errors import NotMergeable, UsageError
from pefttool.evaluate import inference
from pefttool.facts import inspect
from pefttool.interfaces import Adapter, Facts, Quantizer, Setting
from pefttool.optimisation import make_optimizer, optimizer_step
from pefttool.precision import grad_scaler
from pefttool.registry import Registry
from pefttool.settings import TrainSettings
from pefttool.testing.models import model_folder
from pefttool.testing.toys import TOYS, toy_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CPU = Choice(device="cpu", dtype="float32", autocast=None, grad_scaler=False, reason="the contract suite")
#: Largest relative difference (Frobenius) of what must be equal but may be added up in another order.
TOLERANCE = 1e-5
#: What float32 sums leave of a gradient that is 0, as a share of the largest gradient.
ROUNDING = 1e-7
#: Between a parameter and a tensor that hangs on it (its scales).
CARRIED = " > "


class ContractViolation(AssertionError):
    """An object breaks its contract; the message names it, the check and what was found."""


@dataclass(frozen=True)
class AdapterCase:
    """One adapter on one kind of model (`encoder`, `decoder`), perhaps quantised."""

    adapter: Adapter
    kind: str
    quantizer: Quantizer | None = None
    options: Any = None

    def __str__(self) -> str:
        return f"{self.adapter.name}-{self.kind}" + (f"-{self.quantizer.name}" if self.quantizer else "")

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            raise ContractViolation(f"adapter {self.adapter.name!r} on a {self.kind}: {message}")

    @property
    def chosen(self) -> Any:
        return self.adapter.Options() if self.options is None else self.options


@dataclass
class Bench:
    """A freshly loaded base, with what it takes to train and to compare it."""

    case: AdapterCase
    model: nn.Module
    facts: Facts
    setting: Setting

    @classmethod
    def load(cls, case: AdapterCase, seed: int = 0) -> Bench:
        task, setting = TOYS[case.kind], Setting(None, labels=("0", "1"), seed=seed)
        known = Facts(architecture="", head_modules=("classifier",) if case.kind == "encoder" else (), seed=seed)
        known = replace(known, output_modules=() if case.kind == "encoder" else ("lm_head",))
        model, _, _ = load_model(model_folder(case.kind), task, setting, case.quantizer, known, "cpu", "float32")
        quantizer = case.quantizer.name if case.quantizer else None
        return cls(case, model, inspect(model, task, quantizer=quantizer, seed=seed), setting)

    def attach(self) -> Adapted:
        return attach(self.model, self.case.adapter, self.case.chosen, self.facts)

    def batch(self, rows: Sequence[int] | None = None) -> tuple[dict[str, Tensor], float]:
        task = TOYS[self.case.kind]
        examples = [task.encode(row, None, self.setting) for row in toy_rows(self.case.kind)]
        chosen = examples if rows is None else [examples[i] for i in rows]
        return task.collate(chosen, None, self.setting), float(sum(e["weight"] for e in chosen))

    def outputs(self, model: nn.Module) -> Tensor:
        """Logits of all rows in evaluation."""
        batch, _ = self.batch()
        with inference(model, CPU):
            outputs: Tensor = TOYS[self.case.kind].loss(model, batch, self.setting).outputs
        return outputs

    def step(self, adapted: Adapted, optimizer: torch.optim.Optimizer, parts: Sequence[Sequence[int]]) -> float:
        """One optimiser step over micro-batches of rows; returns its loss."""
        adapted.model.train()
        weight = sum(self.batch(part)[1] for part in parts)
        result = optimizer_step(
            adapted.model,
            list(adapted.parameters().values()),
            [(self.batch(part)[0], True) for part in parts],
            weight,
            TOYS[self.case.kind],
            self.setting,
            CPU,
            optimizer,
            grad_scaler(CPU),
            max_grad_norm=1e9,
        )
        adapted.model.eval()
        return result.loss

    def train(self, adapted: Adapted, steps: int) -> list[float]:
        """Losses of steps on all rows at the adapter's own rate, an evaluation after each."""
        defaults = self.case.adapter.defaults(TOYS[self.case.kind])
        rates = {k: v for k, v in defaults.items() if k in ("learning_rate", "head_learning_rate")}
        optimizer = make_optimizer(adapted, self.case.adapter, TrainSettings(**{"learning_rate": 1e-3, **rates}))
        losses = []
        for _ in range(steps):
            losses.append(self.step(adapted, optimizer, [range(16)]))
            self.outputs(adapted.model)
        return losses


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer, and the scales that quantised parameters carry."""
    import torch

    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield name, tensor
        for holder in (
            tensor,
            getattr(tensor, "quant_state", None),
            getattr(getattr(tensor, "quant_state", None), "state2", None),
        ):
            for field, value in sorted(vars(holder).items()) if hasattr(holder, "__dict__") else ():
                if isinstance(value, torch.Tensor):
                    yield f"{name}{CARRIED}{type(holder).__name__}.{field}", value


def snapshot(model: nn.Module, without: set[str]) -> dict[str, bytes]:
    """The bytes of every tensor but those named."""
    import torch

    found = {}
    for name, tensor in tensors_of(model):
        if name not in without and tensor.device.type != "meta" and not name.endswith(".grad"):
            found[name] = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return found


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes]) -> list[str]:
    """Names whose bytes differ or are gone. What a parameter carries may be handed on, as bitsandbytes does."""
    gone = [name for name in before if name not in after and CARRIED not in name]
    return gone + [name for name in before if name in after and before[name] != after[name]]


def close(a: Tensor, b: Tensor) -> float:
    """The relative difference of two tensors (Frobenius); 0 where both vanish."""
    a, b = a.detach().double(), b.detach().double()
    scale = float(a.norm())
    return float((a - b).norm()) / scale if scale else float(b.norm())


def identity_at_initialisation(case: AdapterCase) -> None:
    """The adapted model answers as the base does before the first step, or declares that it does not."""
    bench = Bench.load(case)
    before = bench.outputs(bench.model)
    adapted = bench.attach()
    if adapted.identity_at_init:
        off = close(before, bench.outputs(adapted.model))
        case.require(off <= 1e-6, f"declares identity_at_init, but outputs differ by {off:.1e} before the first step")


def trains_what_it_declares(case: AdapterCase) -> None:
    """Exactly the declared parameters (and the core's heads) train, in float32, and something does."""
    import torch

    adapted = Bench.load(case).attach()  # raises PluginError for parameters that train undeclared, or the reverse
    parameters = adapted.parameters()
    case.require(bool(parameters), "nothing trains")
    low = [n for n, p in parameters.items() if p.dtype != torch.float32]
    case.require(not low, f"{low[:1]} do not train in float32")


def groups_cover_the_parameters(case: AdapterCase) -> None:
    """`param_groups` holds each of the adapter's parameters exactly once."""
    adapted = Bench.load(case).attach()
    named = dict(adapted.model.named_parameters())
    groups = case.adapter.param_groups(adapted.model, adapted.trainable, 1e-3)
    given = sorted(id(p) for group in groups for p in group["params"])
    wanted = sorted(id(named[n]) for n in adapted.trainable)
    case.require(given == wanted, f"param_groups holds {len(given)} parameters, expected each of {len(wanted)} once")


def base_stays_as_it_was(case: AdapterCase) -> None:
    """After steps, with evaluations between them, every byte that does not train is as before."""
    if case.adapter.trains_base:
        return
    bench = Bench.load(case)
    originals = {
        n: t for n, t in tensors_of(bench.model) if not n.startswith(tuple(bench.facts.head_modules) or ("\0",))
    }
    copies = {n: t.detach().clone() for n, t in originals.items()}
    adapted = bench.attach()
    before = snapshot(adapted.model, set(adapted.parameters()))
    bench.train(adapted, 3)
    changed = [n for n, t in originals.items() if not t.detach().equal(copies[n])]
    case.require(not changed, f"the base's {changed[:1]} changed")
    after = snapshot(adapted.model, set(adapted.parameters()))
    drifted = changes(before, after)
    case.require(not drifted, f"{drifted[:1]} does not train, and changed")


def loss_falls(case: AdapterCase) -> None:
    """A tiny task is learnt at the adapter's own learning rate."""
    bench = Bench.load(case)
    losses = bench.train(bench.attach(), 25)
    case.require(losses[-1] < 0.97 * losses[0], f"loss went from {losses[0]:.4f} to {losses[-1]:.4f} in 25 steps")


def same_seed_same_result(case: AdapterCase) -> None:
    """Two runs from one seed give bit-equal parameters."""
    results = []
    for _ in range(2):
        bench = Bench.load(case, seed=3)
        adapted = bench.attach()
        bench.train(adapted, 3)
        results.append({n: p.detach().clone() for n, p in adapted.parameters().items()})
    off = [n for n in results[0] if not results[0][n].equal(results[1][n])]
    case.require(not off, f"{off[:1]} differs between two runs from one seed")


def accumulation_changes_nothing(case: AdapterCase) -> None:
    """One batch of eight rows and eight batches of one give the same gradients, each to 1e-5."""
    found = []
    for parts in ([range(8)], [[i] for i in range(8)]):
        bench = Bench.load(case)
        adapted = bench.attach()
        bench.train(adapted, 2)  # away from the start, where gradients may vanish
        found.append(_gradients(bench, adapted, parts))
    largest = max(float(g.norm()) for g in found[0].values())
    for name, gradient in found[0].items():
        # Some gradients are 0 but for rounding (a key's bias under softmax): for them that is the measure.
        off = float((gradient - found[1][name]).norm()) / max(float(gradient.norm()), ROUNDING / TOLERANCE * largest)
        case.require(off <= TOLERANCE, f"the gradient of {name} differs by {off:.1e} between 1 x 8 and 8 x 1")


def _gradients(bench: Bench, adapted: Adapted, parts: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    import torch

    parameters = adapted.parameters()
    kept: dict[str, Tensor] = {}

    class Keep(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            kept.update({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})

    bench.step(adapted, Keep(list(parameters.values()), lr=0.0), parts)
    return kept


def save_and_load_are_exact(case: AdapterCase) -> None:
    """What is saved and loaded onto a fresh base gives bit-equal outputs; the head comes along."""
    bench = Bench.load(case)
    adapted = bench.attach()
    bench.train(adapted, 3)
    expected = bench.outputs(adapted.model)
    with tempfile.TemporaryDirectory() as folder:
        save(case, adapted, bench.facts, Path(folder))
        fresh = Bench.load(case, seed=9)
        model = case.adapter.load(fresh.model, Path(folder))
        stored = peft_folder.read_head(Path(folder))
    import torch

    with torch.no_grad():
        for name, parameter in peft_folder.head_parameters(model, bench.facts.head_modules).items():
            case.require(name in stored, f"the head's {name!r} is not in the folder")
            parameter.copy_(stored[name])
    case.require(not any(p.requires_grad for p in model.parameters()), "a loaded adapter still trains")
    off = close(expected, bench.outputs(model))
    case.require(off == 0, f"outputs differ by {off:.1e} after save and load")


def save(case: AdapterCase, adapted: Adapted, facts: Facts, folder: Path) -> None:
    """The adapter's files, then the head's, as the core writes them."""
    case.adapter.save(adapted.model, folder)
    heads = peft_folder.head_parameters(adapted.model, facts.head_modules)
    if heads:
        peft_folder.write_head(folder, {n: p.detach() for n, p in heads.items()}, facts.head_modules)


def file_holds_no_base(case: AdapterCase) -> None:
    """No tensor of the base is stored with the adapter."""
    if case.adapter.trains_base:
        return
    bench = Bench.load(case)
    base = {n: t.detach().clone() for n, t in tensors_of(bench.model)}
    adapted = bench.attach()
    bench.train(adapted, 2)
    with tempfile.TemporaryDirectory() as folder:
        save(case, adapted, bench.facts, Path(folder))
        files = sorted(Path(folder).rglob("*.safetensors"))
        case.require(bool(files), "saved no safetensors file")
        stored = {n: t for file in files for n, t in peft_folder.read_tensors(file).items()}
    for name, tensor in stored.items():
        same = [n for n, t in base.items() if t.numel() > 1 and t.shape == tensor.shape and t.equal(tensor.to(t.dtype))]
        case.require(not same, f"the file's {name!r} is the base's {same[:1]}")


def merges_or_says_why_not(case: AdapterCase) -> None:
    """The merged model gives the adapted one's outputs, or NotMergeable gives a reason."""
    bench = Bench.load(case)
    adapted = bench.attach()
    bench.train(adapted, 3)
    expected = bench.outputs(adapted.model)
    try:
        merged = case.adapter.merge(adapted.model)
    except NotMergeable as error:
        case.require(len(str(error)) > 20, f"refuses to merge without a reason: {error!s}")
        return
    off = close(expected, bench.outputs(merged))
    case.require(off <= TOLERANCE, f"outputs differ by {off:.1e} after the merge")


def second_attach_is_refused(case: AdapterCase) -> None:
    """Attaching under a name that is taken raises UsageError."""
    bench = Bench.load(case)
    adapted = bench.attach()
    try:
        case.adapter.attach(adapted.model, case.chosen, bench.facts)
    except UsageError:
        return
    case.require(False, "a second attach under the same name was not refused")


def can_be_switched_off(case: AdapterCase) -> None:
    """Inside `disabled` the model answers as the base (adapters that cannot raise NotImplementedError)."""
    bench = Bench.load(case)
    adapted = bench.attach()
    expected = {n: p.detach().clone() for n, p in adapted.parameters().items() if n in adapted.head}
    before = bench.outputs(Bench.load(case).model)
    bench.train(adapted, 2)
    import torch

    with torch.no_grad():  # the head trains too, and is not the adapter's to switch off
        for name, value in expected.items():
            adapted.parameters()[name].copy_(value)
    try:
        context = case.adapter.disabled(adapted.model)
    except NotImplementedError:
        return
    with context:
        off = close(before, bench.outputs(adapted.model))
    case.require(off <= 1e-6, f"outputs differ by {off:.1e} from the base's while switched off")


ADAPTER_CHECKS: Mapping[str, Callable[[AdapterCase], None]] = {
    check.__name__: check
    for check in (
        identity_at_initialisation,
        trains_what_it_declares,
        groups_cover_the_parameters,
        base_stays_as_it_was,
        loss_falls,
        same_seed_same_result,
        accumulation_changes_nothing,
        save_and_load_are_exact,
        file_holds_no_base,
        merges_or_says_why_not,
        second_attach_is_refused,
        can_be_switched_off,
    )
}


def adapter_cases(
    adapter: Adapter, registry: Registry | None = None, kinds: Sequence[str] = ("encoder", "decoder")
) -> tuple[list[AdapterCase], dict[str, str]]:
    """(cases, refusals): the adapter on every kind of model, plain and with each quantizer of `registry`.

    Cases that the adapter's `check` or the quantizer refuses are left out, with the reason.
    """
    quantizers: list[Quantizer | None] = [None]
    if registry is not None:
        quantizers += [registry.quantizers[name] for name in registry.quantizers]
    cases, refused = [], {}
    for kind in kinds:
        for quantizer in quantizers:
            case = AdapterCase(adapter, kind, quantizer)
            reason = _refusal(case)
            if reason is None:
                cases.append(case)
            else:
                refused[str(case)] = reason
    return cases, refused


def _refusal(case: AdapterCase) -> str | None:
    facts = Bench.load(AdapterCase(case.adapter, case.kind)).facts
    facts = replace(facts, quantizer=case.quantizer.name if case.quantizer else None)
    if case.quantizer is not None:
        if case.adapter.trains_base:
            return f"{case.adapter.name!r} trains the weights that {case.quantizer.name!r} freezes"
        reason = case.quantizer.refuses(case.quantizer.Options(), facts)
        if reason is not None:
            return reason
    problems = case.adapter.check(case.chosen, facts)
    return "; ".join(map(str, problems)) or None


def check_adapter(adapter: Adapter, registry: Registry | None = None) -> dict[str, str]:
    """Run every check on every case; returns the refused cases with their reasons. Raises ContractViolation."""
    cases, refused = adapter_cases(adapter, registry)
    for case in cases:
        for check in ADAPTER_CHECKS.values():
            check(case)
    return refused
