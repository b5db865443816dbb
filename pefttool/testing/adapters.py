"""The contract of an adapter, check by check. Every check runs on a fresh tiny model, in float32, on the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pefttool.api.errors import NotMergeable, PluginError, RunError, UsageError
from pefttool.api.facts import Facts
from pefttool.inference.predictor import inference
from pefttool.nn import added_positions
from pefttool.nn.tensors import tensors_of
from pefttool.setup.attach import Adapted
from pefttool.testing.bench import CPU, TOLERANCE, AdapterCase, Bench, load_base, toy_batch
from pefttool.testing.equalities import (
    kernels_change_nothing,
    packing_changes_nothing,
    require_same_gradients,
    streaming_changes_nothing,
)
from pefttool.testing.tensors import changes, close, content, lost, snapshot, storage
from pefttool.testing.toys import TOYS
from pefttool.toolkit import peft_folder
from pefttool.training.sanity_checks import UPDATES

if TYPE_CHECKING:
    from torch import Tensor, nn


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

    try:
        adapted = Bench.load(case).attach()
    except PluginError as error:  # the core's own check: parameters that train undeclared, or the reverse
        case.fail(str(error))
    parameters = adapted.parameters()
    case.require(bool(parameters), "nothing trains")
    low = [n for n, p in parameters.items() if p.dtype != torch.float32]
    case.require(not low, f"{low[:1]} do not train in float32")


def task_head_is_trained_and_saved(case: AdapterCase) -> None:
    """The core finds the new task head in the adapted model, trains all of it, and reads back what it saved."""
    bench = Bench.load(case)
    wanted = set(peft_folder.head_parameters(bench.model, bench.facts.head_modules))
    adapted = bench.attach()
    live = peft_folder.head_parameters(adapted.model, bench.facts.head_modules)
    hidden = sorted(wanted - set(live))
    case.require(not hidden, f"the task head's {hidden[:1]} cannot be found in the adapted model under its own name")
    before = {n: p.detach().clone() for n, p in live.items()}
    bench.train(adapted, 2)
    idle = [n for n, p in live.items() if p.equal(before[n])]
    case.require(not idle, f"the task head's {idle[:1]} did not change in two steps")
    with tempfile.TemporaryDirectory() as folder:
        _save(case, adapted, bench.facts, Path(folder))
        stored = peft_folder.read_head(Path(folder))
    damaged = [n for n, p in live.items() if n not in stored or content(stored[n]) != content(p)]
    case.require(not damaged, f"the task head's {damaged[:1]} is not in the folder as it was trained")


def groups_cover_the_parameters(case: AdapterCase) -> None:
    """`param_groups` holds each of the adapter's parameters exactly once."""
    adapted = Bench.load(case).attach()
    named = dict(adapted.model.named_parameters())
    groups = case.adapter.param_groups(adapted.model, adapted.trainable, 1e-3)
    given = sorted(id(p) for group in groups for p in group["params"])
    wanted = sorted(id(named[n]) for n in adapted.trainable)
    case.require(given == wanted, f"param_groups holds {len(given)} parameters, expected each of {len(wanted)} once")


def base_stays_as_it_was(case: AdapterCase) -> None:
    """After attaching, and after steps with evaluations between them, every byte of the base is still there, packed
    weights and their scales included; and nothing changed that does not train."""
    if case.adapter.trains_base:
        return
    bench = Bench.load(case)
    heads = tuple(f"{module}." for module in bench.facts.head_modules)
    base = {n: content(t) for n, t in storage(bench.model).items() if not (heads and n.startswith(heads))}
    adapted = bench.attach()
    missing = lost(base, adapted.model)
    case.require(not missing, f"attach() changed the base's {missing[:1]}")
    before = snapshot(adapted.model)
    bench.train(adapted, 3)
    missing = lost(base, adapted.model)
    case.require(not missing, f"the base's {missing[:1]} changed in three steps with evaluations between them")
    trained = adapted.parameters()
    drifted = [n for n in changes(before, snapshot(adapted.model)) if n not in trained]
    case.require(not drifted, f"{drifted[:1]} does not train, and changed")


def trains_without_alarm(case: AdapterCase) -> None:
    """What a run watches for does not happen: a part that no gradient reaches, or that stays; a base that changes."""
    bench = Bench.load(case)
    try:
        bench.train(bench.attach(), UPDATES + 1, watched=True)
    except RunError as error:
        case.fail(f"a run would stop: {error}")


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
        results.append({n: content(p) for n, p in adapted.parameters().items()})
    off = changes(*results)
    case.require(not off, f"{off[:1]} differs between two runs from one seed")


def accumulation_changes_nothing(case: AdapterCase) -> None:
    """One batch of eight rows and eight batches of one give the same gradients, each to 1e-5."""
    found = []
    for parts in ([range(8)], [[i] for i in range(8)]):
        bench = Bench.load(case)
        adapted = bench.attach()
        bench.train(adapted, 2)  # away from the start, where gradients may vanish
        found.append(bench.gradients(adapted, parts)[1])
    require_same_gradients(case, "1 x 8 and 8 x 1", *found)


def save_and_load_are_exact(case: AdapterCase) -> None:
    """What is saved and loaded onto a fresh base gives bit-equal outputs, and nothing trains any more."""
    import torch

    bench = Bench.load(case)
    adapted = bench.attach()
    bench.train(adapted, 3)
    expected = bench.outputs(adapted.model)
    with tempfile.TemporaryDirectory() as folder:
        _save(case, adapted, bench.facts, Path(folder))
        fresh = Bench.load(case, seed=9)
        model = case.adapter.load(fresh.model, Path(folder))
        added_positions.install(model, case.adapter.added_positions(case.chosen, bench.facts))
        stored = peft_folder.read_head(Path(folder))
    with torch.no_grad():
        for name, parameter in peft_folder.head_parameters(model, bench.facts.head_modules).items():
            parameter.copy_(stored[name])
    training = [n for n, p in model.named_parameters() if p.requires_grad]
    case.require(not training, f"{training[:1]} still trains after load()")
    found = bench.outputs(model)
    off = close(expected, found)
    case.require(content(expected) == content(found), f"outputs differ by {off:.1e} after save and load")
    names = [name for name, _ in model.named_parameters() if name in adapted.parameters()]
    before, after = (bench.gradients_of(found, names) for found in (adapted.model, model))
    changed = [name for name in names if content(before[name]) != content(after[name])]
    case.require(not changed, f"the gradient of {changed[:1]} differs after save and load")


def _save(case: AdapterCase, adapted: Adapted, facts: Facts, folder: Path) -> None:
    """The adapter's files, then the head's, as the core writes them."""
    case.adapter.save(adapted.model, folder)
    heads = peft_folder.head_parameters(adapted.model, facts.head_modules)
    if heads:
        peft_folder.write_head(folder, {n: p.detach() for n, p in heads.items()}, facts.head_modules)


def file_holds_no_base(case: AdapterCase) -> None:
    """Tensors are stored in safetensors files only, and none of them is the base's, by name or by value."""
    bench = Bench.load(case)
    heads = tuple(f"{module}." for module in bench.facts.head_modules)
    base = {n: t.detach().clone() for n, t in tensors_of(bench.model) if not (heads and n.startswith(heads))}
    adapted = bench.attach()
    bench.train(adapted, 2)
    with tempfile.TemporaryDirectory() as folder:
        _save(case, adapted, bench.facts, Path(folder))
        files = sorted(file for file in Path(folder).rglob("*") if file.is_file())
        tensors = [file for file in files if file.suffix == ".safetensors"]
        case.require(bool(tensors), "saved no safetensors file")
        binary = [file.name for file in files if file not in tensors and not _is_text(file)]
        case.require(not binary, f"{binary[:1]} is neither safetensors nor text: it may hold anything")
        stored = {n: t for file in tensors for n, t in peft_folder.read_tensors(file).items()}
    if case.adapter.trains_base:
        return
    frozen = [n for n in base if not any(f".{trained}".endswith(f".{n}") for trained in adapted.trainable)]
    for name, tensor in stored.items():
        named = [n for n in frozen if f".{name}".endswith(f".{n}")]
        case.require(not named, f"the file's {name!r} has the name of the base's {named[:1]}")
        same = [n for n, t in base.items() if _same_values(t, tensor)]
        case.require(not same, f"the file's {name!r} is the base's {same[:1]}")


def _is_text(file: Path) -> bool:
    try:
        return "\0" not in file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False


def _same_values(base: Tensor, stored: Tensor) -> bool:
    """`stored` holds the values of `base`, in whatever shape, dtype, or transposed."""
    import torch

    if base.numel() <= 1 or base.numel() != stored.numel():
        return False
    # In the wider of the two: numbers below 1 are no zeros, whatever a cast to integers makes of them.
    wider = torch.promote_types(base.dtype, stored.dtype)
    base, stored = base.to(wider), stored.to(wider)
    return any(base.flatten().equal(turned.flatten()) for turned in (stored, stored.mT if stored.ndim > 1 else stored))


def merges_or_says_why_not(case: AdapterCase) -> None:
    """The merged model is a plain one with the adapted model's outputs, or NotMergeable gives a reason."""
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
    plain, _ = load_base(case.kind)
    case.require(type(merged) is type(plain), f"merge() gives a {type(merged).__name__}, not a {type(plain).__name__}")
    odd = sorted(_names(merged) ^ _names(plain))
    case.require(not odd, f"the merged model is not plain: it and the base do not both have {odd[:1]}")


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def second_attach_is_refused(case: AdapterCase) -> None:
    """Attaching to a model that carries an adapter raises UsageError, and leaves the first as it was."""
    bench = Bench.load(case)
    adapted = bench.attach()
    before, training = snapshot(adapted.model), adapted.parameters()
    try:
        case.adapter.attach(adapted.model, case.chosen, bench.facts)
    except UsageError:
        pass
    else:
        case.fail("a second attach was not refused")
    changed = changes(before, snapshot(adapted.model))
    case.require(not changed, f"the refused second attach changed {changed[:1]}")
    frozen = [n for n, p in training.items() if not p.requires_grad]
    case.require(not frozen, f"the refused second attach froze {frozen[:1]}")


def positions_are_the_texts(case: AdapterCase) -> None:
    """The logits are those of the text's tokens, whether a task asks for all or, by `logits_to_keep`, for some.

    Positions that the adapter adds have to be declared (`added_positions`): the core moves what asks for others.
    """
    import torch

    if not TOYS[case.kind].generative:
        return
    bench = Bench.load(case)
    adapted = bench.attach()
    bench.leave_start(adapted)
    batch = toy_batch(case.kind)[0]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    tokens = inputs["input_ids"].shape[1]
    kept = torch.tensor([1, 3])
    with inference(adapted.model, CPU):
        try:
            whole = adapted.model(**inputs, use_cache=False).logits
            some = adapted.model(**inputs, use_cache=False, logits_to_keep=kept).logits
        except (ValueError, IndexError) as error:
            case.fail(f"its positions are not those of the text: {error}; does added_positions() say how many it adds?")
    found = whole.shape[1]
    case.require(
        found == tokens,
        f"answers {tokens} tokens with the logits of {found} positions: declare added_positions(), and the core cuts"
        " and moves them",
    )
    off = close(whole[:, kept], some)
    case.require(
        off <= TOLERANCE,
        f"logits differ by {off:.1e} between all of them and those that logits_to_keep names: do not cut or move them,"
        " but declare added_positions()",
    )


def can_be_switched_off(case: AdapterCase) -> None:
    """Inside `disabled` the model answers as the base, and as before afterwards (who cannot, raises
    NotImplementedError)."""
    import torch

    bench = Bench.load(case)
    adapted = bench.attach()
    heads = {n: p.detach().clone() for n, p in adapted.parameters().items() if n in adapted.head}
    expected = bench.outputs(load_base(case.kind, case.quantization)[0])
    bench.train(adapted, 2)
    with torch.no_grad():  # the head trained too, and is not the adapter's to switch off
        for name, value in heads.items():
            adapted.parameters()[name].copy_(value)
    on = bench.outputs(adapted.model)
    try:
        with added_positions.disabled(case.adapter, adapted.model):
            off = close(expected, bench.outputs(adapted.model))
    except NotImplementedError:
        return
    case.require(off <= 1e-6, f"outputs differ by {off:.1e} from the base's while switched off")
    off = close(on, bench.outputs(adapted.model))
    case.require(off == 0, f"outputs differ by {off:.1e} after it was switched off and on again")


ADAPTER_CHECKS: Mapping[str, Callable[[AdapterCase], None]] = {
    check.__name__: check
    for check in (
        identity_at_initialisation,
        trains_what_it_declares,
        task_head_is_trained_and_saved,
        groups_cover_the_parameters,
        base_stays_as_it_was,
        trains_without_alarm,
        loss_falls,
        same_seed_same_result,
        accumulation_changes_nothing,
        save_and_load_are_exact,
        file_holds_no_base,
        positions_are_the_texts,
        packing_changes_nothing,
        streaming_changes_nothing,
        kernels_change_nothing,
        merges_or_says_why_not,
        second_attach_is_refused,
        can_be_switched_off,
    )
}
