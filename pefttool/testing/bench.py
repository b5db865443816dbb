"""One adapter on one tiny model: what every check of the adapter contract starts from. Float32, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from pefttool.api.adapter import Adapter
from pefttool.api.facts import Facts
from pefttool.api.quantizer import Quantizer
from pefttool.api.values import Setting
from pefttool.config.settings import TrainSettings
from pefttool.inference.predictor import Predictor, inference
from pefttool.models.facts import inspect
from pefttool.models.quantization import Quantization
from pefttool.setup.attach import Adapted, attach
from pefttool.setup.base import load_model
from pefttool.setup.devices import Choice
from pefttool.setup.loading import Loading
from pefttool.setup.precision import grad_scaler
from pefttool.testing.models import model_folder
from pefttool.testing.toys import TOYS, toy_rows
from pefttool.training.optimisation import Update, make_optimizer, optimizer_step
from pefttool.training.sanity_checks import Watch

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

CPU = Choice(device="cpu", dtype="float32", autocast=None, grad_scaler=False, reason="the contract suite")
#: Largest relative difference of what must be equal but may be added up in another order.
TOLERANCE = 1e-5


class ContractViolation(AssertionError):
    """An object breaks its contract; the message names it, the check and what was found."""


def require(holds: bool, what: str, message: str) -> None:
    """Raise ContractViolation(`what: message`) unless it `holds`."""
    if not holds:
        raise ContractViolation(f"{what}: {message}")


@dataclass(frozen=True)
class AdapterCase:
    """One adapter (by default with its default options) on one kind of model: `encoder` or `decoder`."""

    adapter: Adapter
    kind: str
    quantizer: Quantizer | None = None
    options: Any = None

    def __str__(self) -> str:
        parts = [self.adapter.name, self.kind]
        parts += [self.quantizer.name] if self.quantizer else []
        given = self.options.model_dump(exclude_defaults=True) if self.options is not None else {}
        return "-".join([*parts, *(f"{key}={value}" for key, value in given.items())])

    def require(self, holds: bool, message: str) -> None:
        if not holds:
            self.fail(message)

    def fail(self, message: str) -> NoReturn:
        quantised = f", quantised with {self.quantizer.name!r}" if self.quantizer else ""
        raise ContractViolation(f"adapter {self.adapter.name!r} on the tiny {self.kind}{quantised}: {message}")

    @property
    def quantization(self) -> Quantization | None:
        """How the base is stored: by the quantizer with its default options."""
        return None if self.quantizer is None else Quantization.default(self.quantizer)

    @property
    def chosen(self) -> Any:
        return self.adapter.Options() if self.options is None else self.options


def toy_setting(seed: int = 0, packing: bool = False) -> Setting:
    return Setting(None, labels=("0", "1"), seed=seed, packing=packing)


def load_base(kind: str, quantization: Quantization | None = None, seed: int = 0) -> tuple[nn.Module, Facts]:
    """A fresh tiny model as the core would load it, and its facts."""
    # A quantizer is told beforehand which modules it must leave alone, as `plan` tells it.
    heads, outputs = (("classifier",), ()) if kind == "encoder" else ((), ("lm_head",))
    known = Facts(architecture="", head_modules=heads, output_modules=outputs, seed=seed)
    folder, task = model_folder(kind), TOYS[kind]
    read = load_model(Loading(folder, task, toy_setting(seed), quantization, known, "cpu", "float32"))
    model = read.model
    return model, inspect(model, task, quantizer=quantization.name if quantization else None, seed=seed)


def toy_batch(kind: str, rows: Sequence[int] | None = None, packing: bool = False) -> tuple[dict[str, Tensor], float]:
    """(tensors, weight) of these toy rows, or of all 16."""
    task, setting = TOYS[kind], toy_setting(packing=packing)
    examples = [task.encode(row, None, setting) for row in toy_rows(kind)]
    chosen = examples if rows is None else [examples[i] for i in rows]
    return task.collate(chosen, None, setting), float(sum(e["weight"] for e in chosen))


def toy_outputs(kind: str, model: nn.Module) -> Tensor:
    """Logits of all toy rows in evaluation: `[B, C]` of an encoder, `[trained tokens, V]` of a decoder."""
    with inference(model, CPU):
        outputs: Tensor = TOYS[kind].loss(model, toy_batch(kind)[0], toy_setting()).outputs
    return outputs


@dataclass
class Bench:
    """A freshly loaded base, with what it takes to train an adapter on it and to compare it."""

    case: AdapterCase
    model: nn.Module
    facts: Facts

    @classmethod
    def load(cls, case: AdapterCase, seed: int = 0) -> Bench:
        return cls(case, *load_base(case.kind, case.quantization, seed))

    def attach(self) -> Adapted:
        return attach(self.model, self.case.adapter, self.case.chosen, self.facts)

    def outputs(self, model: nn.Module) -> Tensor:
        return toy_outputs(self.case.kind, model)

    def gradients(
        self, adapted: Adapted, parts: Sequence[Sequence[int]], packing: bool = False
    ) -> tuple[float, dict[str, Tensor]]:
        """(loss, gradients by parameter) of one step of the core's own, which changes nothing."""
        import torch

        parameters = adapted.parameters()
        kept: dict[str, Tensor] = {}

        class Keep(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                kept.update({n: p.grad.clone() for n, p in parameters.items() if p.grad is not None})

        return self.step(adapted, Keep(list(parameters.values()), lr=0.0), parts, packing), kept

    def gradients_of(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """Gradients of these parameters alone, in evaluation mode; zeros where there is none."""
        import torch

        task, parameters = TOYS[self.case.kind], dict(model.named_parameters())
        model.eval().requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)
        loss = task.loss(model, toy_batch(self.case.kind)[0], toy_setting()).sum
        wanted = [parameters[name] for name in names]
        found = torch.autograd.grad(loss, wanted, allow_unused=True) if loss.requires_grad else [None] * len(names)
        return {n: torch.zeros_like(parameters[n]) if g is None else g for n, g in zip(names, found, strict=True)}

    def leave_start(self, adapted: Adapted) -> None:
        """Change what trains a little, always alike: where an adapter starts, gradients may vanish."""
        import torch

        draws = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for parameter in adapted.parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=draws), alpha=0.05)

    def step(
        self,
        adapted: Adapted,
        optimizer: torch.optim.Optimizer,
        parts: Sequence[Sequence[int]],
        packing: bool = False,
    ) -> float:
        """One optimiser step over micro-batches of rows; returns its loss."""
        adapted.model.train()
        for module in adapted.eval_modules:
            module.eval()
        batches = [toy_batch(self.case.kind, part, packing) for part in parts]
        result = optimizer_step(
            Predictor(adapted.model, TOYS[self.case.kind], None, toy_setting(self.facts.seed, packing), CPU),
            Update(optimizer, grad_scaler(CPU), list(adapted.parameters().values()), max_grad_norm=1e9),
            [(tensors, True) for tensors, _ in batches],
            sum(weight for _, weight in batches),
        )
        adapted.model.eval()
        return result.loss

    def train(self, adapted: Adapted, steps: int, watched: bool = False) -> list[float]:
        """Losses of steps on all rows at the adapter's own rate, an evaluation after each; call it once.

        `watched`: what a run would say, or stop for, is a violation.
        """
        task = TOYS[self.case.kind]
        batches = (toy_batch(self.case.kind, [i, i + 1])[0] for i in range(0, 16, 2))
        self.case.adapter.prepare(
            adapted.model, (task.loss(adapted.model, batch, toy_setting(self.facts.seed)) for batch in batches)
        )
        defaults = self.case.adapter.defaults(task)
        rates = {k: v for k, v in defaults.items() if k in ("learning_rate", "head_learning_rate")}
        optimizer = make_optimizer(adapted, self.case.adapter, TrainSettings(**{"learning_rate": 1e-3, **rates}))
        watch = Watch(adapted, optimizer, self.case.fail, self.case.adapter.trains_base) if watched else None
        losses = []
        for step in range(1, steps + 1):
            losses.append(self.step(adapted, optimizer, [range(16)]))
            self.case.adapter.after_step(adapted.model, step)
            self.outputs(adapted.model)
        if watch is not None:
            watch.finished()
        return losses
