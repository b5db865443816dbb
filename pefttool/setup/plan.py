"""Stage 2: Recipe + Registry -> Plan. Every problem at once, before any weight is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pefttool.api.adapter import Adapter
from pefttool.api.errors import ModelError, Refused, UsageError, suggest
from pefttool.api.facts import Facts
from pefttool.api.task import Task
from pefttool.api.values import Caution, Problem, Setting, told
from pefttool.config import recipe
from pefttool.config.recipe import Recipe
from pefttool.config.registry import Registry
from pefttool.data.recognition import recognise_task
from pefttool.models import facts, hub, prequantized, remote_code
from pefttool.models.pretrained import LocalPretrained, WrongKind
from pefttool.models.quantization import Quantization
from pefttool.models.quantized import stored_by
from pefttool.nn import parameters
from pefttool.setup import devices

TRUSTED = "{!r} comes with Python code, which runs, as trust_remote_code says"
STORED = "{} is stored as {} already, and is trained on as it is"
COMPILED = "compile: memory is planned as if nothing were compiled, which takes no less"


@dataclass(frozen=True)
class Plan:
    """A recipe that can be run here: its objects by name, the device, the model's config and facts.

    `notices` are choices that were made for the user, each with its reason. `trusted` is the code that comes with the
    model: it may run.
    """

    recipe: Recipe
    registry: Registry
    adapter: Adapter
    task: Task
    quantization: Quantization | None
    model: hub.LocalModel
    choice: devices.Choice
    facts: Facts
    notices: tuple[str, ...]
    trusted: bool = False

    def setting(self, labels: tuple[str, ...] = (), fitted: Mapping[str, Any] | None = None) -> Setting:
        return Setting(
            options=self.recipe.task_options,
            labels=labels,
            fitted=fitted or {},
            sequence_length=self.recipe.train.sequence_length,
            frozen_backbone=self.adapter.frozen_backbone,
            generation=self.recipe.generation.model_dump(),
            seed=self.recipe.train.seed,
        )

    def settled(self, options: Any) -> Plan:
        """This plan with the task's options as the rows settled them."""
        return replace(self, recipe=replace(self.recipe, task_options=options))

    @property
    def may_pack(self) -> bool:
        """Rows lie one behind another in one sequence, if the model turns out to keep them apart."""
        return self.recipe.train.packing is not False and self.rows_apart and self.task.packs

    @property
    def added_positions(self) -> int:
        """Those that the adapter puts in front of the text."""
        return self.adapter.added_positions(self.recipe.adapter_options, self.facts)

    @property
    def positions_taken(self) -> int:
        """Those of the model's that the adapter takes from a row's tokens."""
        return self.adapter.positions_taken(self.recipe.adapter_options, self.facts)

    @property
    def rows_apart(self) -> bool:
        """The adapter keeps rows in one sequence apart: what it puts in front of the first, the others lack."""
        return not self.added_positions and self.adapter.keeps_rows_apart(self.recipe.adapter_options, self.facts)

    @property
    def tables_on_host(self) -> bool:
        """Embeddings and output layer stay in host memory."""
        return "embeddings" in self.recipe.memory.offload

    @property
    def base_is_mapped(self) -> bool:
        """All that is frozen are views of a file, which no allocator handed out."""
        return self.recipe.memory.stream and self.choice.device == "cpu"

    def as_json(self) -> dict[str, Any]:
        """What `plan.json` holds: the decisions, not the recipe (which lies beside it)."""
        return {
            "adapter": self.adapter.name,
            "task": self.task.name,
            "quantizer": self.quantization.name if self.quantization else None,
            "model": {"id": self.model.id, "revision": self.model.revision, "architecture": self.facts.architecture},
            "device": self.choice.device,
            "dtype": self.choice.dtype,
            "reason": self.choice.reason,
            "notices": list(map(told, self.notices)),
        }


def make(given: Recipe, registry: Registry, world_size: int = 1, machine: devices.DeviceFacts | None = None) -> Plan:
    """Recognise the task, choose the device, read the model's config, and ask everyone for problems.

    With a `machine` other than this one it is a plan on paper: neither data nor weights have to be there.
    Raises Refused with all problems; the errors of the device, the data and the model come one by one.
    """
    choice = devices.choose(machine or devices.report(), given.device, given.dtype)
    # Before the model, which may have to be fetched or made first: that takes minutes, and a look at rows does not.
    recognised = None if given.data.train is None else recognise_task(given, registry)
    model = hub.resolve(given.model, registry, weights=False, config_is_enough=machine is not None)
    trusted = remote_code.allowed(model, given.trust_remote_code, registry)
    source = LocalPretrained(model.path, abstract=True, trusted=trusted, for_rows=recognised is not None)
    resolved, reason = recognised or recognise_model(given, registry, source.config)
    if model.revision is not None:
        resolved = replace(resolved, model=model.reference)  # its branch may hold another model by the next run
    assert resolved.task is not None
    task, adapter = registry.tasks[resolved.task], registry.adapters[resolved.adapter]
    asked, stored = _asked(resolved, registry), None
    quantization = prequantized.quantization(model.path, model.id, asked, registry.quantizers.values())
    if quantization is not None and quantization.stored_already:
        stored = STORED.format(model.id, quantization.name)
    if quantization is not None and asked is not None:
        resolved = replace(resolved, quantize_options=quantization.options)  # with the defaults of what is stored
    plan = Plan(
        recipe=resolved,
        registry=registry,
        adapter=adapter,
        task=task,
        quantization=quantization,
        model=model,
        choice=choice,
        facts=Facts(architecture=""),
        notices=tuple(
            text
            for text in (
                reason,
                choice.reason,
                *model.notices,
                stored,
                Caution(TRUSTED.format(model.id)) if trusted else None,
            )
            if text is not None
        ),
        trusted=trusted,
    )
    skeleton = _skeleton(plan, source)
    plan = replace(
        plan,
        facts=facts.inspect(
            skeleton,
            task,
            quantizer=quantization.name if quantization else None,
            dtype=choice.dtype,
            device=choice.device,
            world_size=world_size,
            abstract=True,
            **decided(resolved),
        ),
    )
    plan = _within_positions(_without_the_examples_quantizer(plan))
    problems = check(plan)
    if problems:
        raise Refused(map(str, problems))
    said = [*_unquantised(plan, skeleton), *adapter.notices(resolved.adapter_options, plan.facts)]
    if resolved.train.compile:
        said.append(COMPILED)
    return replace(plan, notices=(*plan.notices, *said))


def _asked(resolved: Recipe, registry: Registry) -> Quantization | None:
    """What the recipe says of how weights are stored."""
    if resolved.quantize is None or resolved.quantize_options is None:
        return None
    return Quantization(registry.quantizers[resolved.quantize], resolved.quantize_options)


def _unquantised(plan: Plan, skeleton: Any) -> Iterator[str]:
    """A notice where much of the model stays as it is though a quantizer was asked for."""
    if plan.quantization is None:
        return
    names = stored_by(plan.quantization.quantizer, skeleton, plan.facts.linear_modules)
    stored = sum(skeleton.get_submodule(name).weight.numel() for name in names)
    text = parameters.unreached(plan.facts.weights, stored, plan.quantization.name, plan.choice.dtype)
    if text is not None:
        yield text


def _without_the_examples_quantizer(plan: Plan) -> Plan:
    """The plan without a quantizer that only the built-in example asks for, where it refuses; with a notice."""
    if plan.quantization is None or "quantize" in plan.recipe.given:
        return plan
    refusal = plan.quantization.refuses(plan.facts)
    if refusal is None:
        return plan
    return replace(
        plan,
        recipe=replace(plan.recipe, quantize=None, quantize_options=None),
        quantization=None,
        facts=replace(plan.facts, quantizer=None),
        notices=(*plan.notices, f"quantize: the example's own is left out, its weights stay as they are: {refusal}"),
    )


def _within_positions(plan: Plan) -> Plan:
    """The plan with rows as long as the model has positions for, where the usual length is more and nobody gave one."""
    usual, longest = plan.recipe.train.sequence_length, plan.facts.positions
    room = longest - plan.positions_taken
    given = "sequence_length" in (plan.recipe.given.get("train") or {})
    if given or not longest or not plan.task.truncates or not 0 < room < usual:
        return plan
    resolved = replace(plan.recipe, train=plan.recipe.train.model_copy(update={"sequence_length": room}))
    text = f"rows are cut at {room} tokens, not the usual {usual}: the model has {longest} positions"
    if room < longest:
        text += f", of which adapter {plan.adapter.name!r} takes {longest - room}"
    known = replace(plan.facts, **decided(resolved))
    return replace(plan, recipe=resolved, facts=known, notices=(*plan.notices, text))


def _skeleton(plan: Plan, source: LocalPretrained) -> Any:
    """The abstract model of the task. Raises ModelError, with what such a model is for, where there is none."""
    try:
        return plan.task.load(source, plan.setting()).model
    except WrongKind as error:
        able = ", ".join(_able(source, plan.registry))
        kind = f"a {source.config.model_type!r} model is none for task {plan.task.name!r}"
        what = f"name one of its tasks with --task ({able}), or give another model" if able else "give another"
        raise ModelError(f"model {plan.model.id}: {kind}: {what}") from error


def _able(source: LocalPretrained, registry: Registry) -> Iterator[str]:
    """Tasks that can load such a model; each is asked to, abstractly."""
    for name, task in registry.tasks.items():
        try:
            task.load(source, Setting(task.Options()))
        except UsageError:
            pass  # of such a model it asks for an option
        except Exception:  # whatever a strange model leads a task to
            continue
        # Of an encoder-decoder transformers would give a language model its decoder alone.
        if not (task.peft_task_type == "CAUSAL_LM" and getattr(source.config, "is_encoder_decoder", False)):
            yield name


def decided(recipe: Recipe) -> dict[str, Any]:
    """The fields of the facts that a recipe decides: a plan whose recipe is changed has to change them with it."""
    return {
        "seed": recipe.train.seed,
        "sequence_length": recipe.train.sequence_length,
        "recomputes": recipe.train.gradient_checkpointing != "none",
        "packed": recipe.train.packing is True,
        "streamed": recipe.memory.stream,
    }


def recognise_model(given: Recipe, registry: Registry, config: Any) -> tuple[Recipe, str]:
    """The recipe with its task where there is no data to tell it from: the first that is meant for such a model."""
    if given.task is not None:
        return given, f"task {given.task}, as asked"
    for name in registry.tasks:
        reason = registry.tasks[name].recognise_model(config)
        if reason is not None:
            resolved = recipe.resolve(given.given, registry, task=name, data_optional=True)
            return resolved, f"task {name}, as there is no data and {reason}"
    raise UsageError(
        f"task: {config.model_type!r} models have no usual task here; say --task NAME {suggest('', registry.tasks)}"
    )


def check(plan: Plan) -> list[Problem]:
    """Everything that can be known to go wrong without weights and without data."""
    resolved, problems = plan.recipe, []
    longest, taken = plan.facts.positions, plan.positions_taken
    if longest and plan.task.truncates and resolved.train.sequence_length + taken > longest:
        more = f" and the {taken} that adapter {plan.adapter.name!r} takes are" if taken else " is"
        message = (
            f"{resolved.train.sequence_length}{more} longer than the model's {longest} positions;"
            f" use at most {longest - taken}"
        )
        problems.append(Problem("train.sequence_length", message))
    fits, longest_row = resolved.train.batch_tokens, resolved.train.sequence_length
    if fits is not None and fits < longest_row:
        message = f"{fits} is less than one row of train.sequence_length={longest_row}; raise it, or shorten rows"
        problems.append(Problem("train.batch_tokens", message))
    if resolved.memory.budget is not None and plan.facts.world_size > 1:
        message = (
            f"{resolved.memory.budget}: {plan.facts.world_size} processes would each choose for themselves; put what"
            " `pefttool plan --budget` chooses into the recipe"
        )
        problems.append(Problem("memory.budget", message))
    added = plan.added_positions
    if added and not plan.task.allows_added_positions:
        allowed = [name for name, task in plan.registry.tasks.items() if task.allows_added_positions]
        message = (
            f"{plan.adapter.name!r} puts {added} positions before the text, and task {plan.task.name!r} counts without"
            f" them; use another adapter, or a task that allows it (allowed: {', '.join(allowed) or 'none'})"
        )
        problems.append(Problem("adapter.name", message))
    for kind, chosen, able in (("adapter", plan.adapter, plan.rows_apart), ("task", plan.task, plan.task.packs)):
        if resolved.train.packing and not able:
            problems.append(Problem("train.packing", f"{kind} {chosen.name!r} does not keep rows apart; drop it"))
    problems += techniques_refused(plan)
    refused = plan.adapter.check(resolved.adapter_options, plan.facts)
    if plan.quantization is not None:
        if plan.adapter.trains_base and not refused:
            message = (
                f"{plan.quantization.name!r} freezes the weights that adapter {plan.adapter.name!r} trains;"
                f" {_instead(plan.quantization)}, or use another adapter"
            )
            problems.append(Problem("quantize", message))
        refusal = plan.quantization.refuses(plan.facts)
        if refusal:
            problems.append(Problem("quantize", refusal))
    problems += plan.task.check(resolved.task_options, plan.facts)
    return problems + refused


def _instead(quantization: Quantization) -> str:
    return "give the 16-bit model that this one was made from" if quantization.stored_already else "drop it"


def techniques_refused(plan: Plan) -> list[Problem]:
    """What makes training smaller or faster, and cannot here; what an adapter cannot do it says itself."""
    found = []
    if plan.facts.recomputes and not plan.facts.recomputable:
        message = f"the blocks of {plan.facts.architecture} cannot compute their activations again; use none"
        found.append(Problem("train.gradient_checkpointing", message))
    offloaded, device = plan.recipe.memory.offload, plan.choice.device
    if offloaded and not device.startswith("cuda"):
        message = f"{', '.join(map(repr, offloaded))}: on {device} they are in host memory already; drop it"
        found.append(Problem("memory.offload", message))
    elif "embeddings" in offloaded and plan.adapter.trains_base:
        message = f"'embeddings': adapter {plan.adapter.name!r} trains them, so that they have to stay; drop it"
        found.append(Problem("memory.offload", message))
    if plan.recipe.memory.stream:
        found += _stream_refused(plan)
    missing = devices.compiler_missing(device) if plan.recipe.train.compile else None
    if missing is not None:
        found.append(Problem("train.compile", missing))
    elif plan.recipe.train.compile and not plan.facts.layers:
        found.append(Problem("train.compile", f"{plan.facts.architecture} has no repeated blocks; drop it"))
    refusal = devices.optimizer_refused(plan.recipe.train.optimizer, device)
    if refusal is not None:
        found.append(Problem("train.optimizer", refusal))
    return found


def _stream_refused(plan: Plan) -> list[Problem]:
    """Why the frozen blocks of this model cannot be fetched when they are needed."""
    able = ", ".join(name for name, quantizer in plan.registry.quantizers.items() if quantizer.streams) or "none"
    found = []
    if plan.adapter.trains_base:
        found.append(
            f"adapter {plan.adapter.name!r} trains the blocks, which then have to stay; drop it, or use another adapter"
        )
    elif plan.quantization is None:
        found.append(f"only quantised blocks can be streamed; add quantize (able: {able}), or drop it")
    elif not plan.quantization.quantizer.streams:
        found.append(
            f"quantizer {plan.quantization.name!r} cannot stream its layers; use another (able: {able}), or drop it"
        )
    blocks = tuple(f"{layer}." for layer in plan.facts.layers)
    if not any(name.startswith(blocks) for name in plan.facts.linear_modules):
        found.append(f"{plan.facts.architecture} has no repeated blocks with linear layers; drop it")
    if plan.facts.world_size > 1:
        found.append(
            f"{plan.facts.world_size} processes: blocks are streamed to one device only; start one, or drop it"
        )
    if plan.trusted:
        found.append("a model with code of its own cannot be built from its config alone; drop it")
    if plan.recipe.train.compile:
        found.append("a compiled model cannot fetch its blocks; drop it, or train.compile")
    return [Problem("memory.stream", message) for message in found]
