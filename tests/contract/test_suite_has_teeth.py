"""Adapters that break the contract on purpose, each caught by the check that is meant to catch it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from broken_adapters import (
    AttachesTwice,
    CannotBeSwitchedOff,
    ChangesAnother,
    ChangesTheBase,
    CutsTheHeadOff,
    DependsOnTheBatch,
    Drifts,
    ForgetsToCopy,
    ForgetsToDeclare,
    FreezesTheFirst,
    GroupsTwice,
    HasAnIdlePart,
    HidesTheHead,
    IgnoresTheSeed,
    LearnsNothing,
    LeavesOneOut,
    LosesHalfOfIt,
    LosesPrecision,
    LosesTheFirst,
    LosesTheGradientWhenLoaded,
    MergesNothing,
    MergesWrongly,
    NotTheIdentity,
    OnDecoders,
    Pickles,
    ReadsTheWeight,
    RefusesWithoutReason,
    SavesNothing,
    SavesTheBase,
    SavesTheBaseTransposed,
    SavesUnderTheBasesName,
    SeesTheNeighbour,
    Shift,
    SkipsARow,
    SpoilsTheFirst,
    StaysOff,
    StillTrainsWhenLoaded,
    SwapsTheBase,
    TrainsInHalfPrecision,
    TrainsNothing,
    TrainsTheBase,
)

from pefttool.api.values import Problem
from pefttool.config import registry as registries
from pefttool.testing import ADAPTER_CHECKS, AdapterCase, ContractViolation, adapter_cases, check_adapter
from pefttool.testing.adapters import _same_values

#: The adapter, the check that catches it, and what it says.
BROKEN: list[tuple[type[Shift], str, str]] = [
    (NotTheIdentity, "identity_at_initialisation", "outputs differ by .* before the first step"),
    (ForgetsToDeclare, "trains_what_it_declares", r"trains '.*dense\.bias' without declaring it"),
    (ChangesAnother, "trains_what_it_declares", r"trains 'bert\.encoder\.layer\.0.*shift' .*in none of the 1 modules"),
    (LeavesOneOut, "trains_what_it_declares", r"was to change 'bert\.encoder\.layer\.1.*' .*nothing trains in it"),
    (TrainsNothing, "trains_what_it_declares", r"declares '.*shift' but does not train it"),
    (TrainsInHalfPrecision, "trains_what_it_declares", "float16, expected float32"),
    (HidesTheHead, "task_head_is_trained_and_saved", r"'classifier\.bias'\] cannot be found"),
    (CutsTheHeadOff, "task_head_is_trained_and_saved", r"'classifier\.weight'\] did not change"),
    (GroupsTwice, "groups_cover_the_parameters", "holds 2 parameters, expected each of 1 once"),
    (SwapsTheBase, "base_stays_as_it_was", r"attach\(\) changed the base's .*dense\.weight"),
    (TrainsTheBase, "base_stays_as_it_was", r"the base's .*dense\.bias'\] changed in three steps"),
    (ChangesTheBase, "base_stays_as_it_was", r"the base's .*dense\.weight'\] changed in three steps"),
    (Drifts, "base_stays_as_it_was", r"calls'\] does not train, and changed"),
    (HasAnIdlePart, "trains_without_alarm", r"no gradient reached 1 of the 4 parameters .* such as .*idle"),
    (LearnsNothing, "trains_without_alarm", "a run would stop: no gradient reaches any of the 3 parameters that train"),
    (
        ChangesTheBase,
        "trains_without_alarm",
        r"a run would stop: 1 of the \d+ tensors of the frozen base .*dense\.weight",
    ),
    (LearnsNothing, "loss_falls", "loss went from"),
    (IgnoresTheSeed, "same_seed_same_result", r"shift'\] differs between two runs"),
    (DependsOnTheBatch, "accumulation_changes_nothing", "the gradient of .* differs"),
    (SkipsARow, "accumulation_changes_nothing", "the gradient of .*shift differs|has a gradient in only one"),
    (ForgetsToCopy, "save_and_load_are_exact", "outputs differ by .* after save and load"),
    (LosesHalfOfIt, "save_and_load_are_exact", "outputs differ by .* after save and load"),
    (LosesPrecision, "save_and_load_are_exact", "outputs differ by .* after save and load"),
    (LosesTheGradientWhenLoaded, "save_and_load_are_exact", "the gradient of .*shift'.* differs after save and load"),
    (LosesTheFirst, "positions_are_the_texts", r"answers \d+ tokens with the logits of \d+ positions: declare added_p"),
    (SeesTheNeighbour, "packing_changes_nothing", "the loss is .* padded and packed rows"),
    (ReadsTheWeight, "streaming_changes_nothing", "the loss is .* beside streamed weights"),
    (ReadsTheWeight, "kernels_change_nothing", "the loss is .* quantised and dequantised weights"),
    (StillTrainsWhenLoaded, "save_and_load_are_exact", r"shift'\] still trains"),
    (SavesTheBase, "file_holds_no_base", r"'weight' is the base's .*dense\.weight"),
    (SavesTheBaseTransposed, "file_holds_no_base", r"'weight' is the base's .*dense\.weight"),
    (SavesUnderTheBasesName, "file_holds_no_base", r"has the name of the base's .*dense\.bias"),
    (Pickles, "file_holds_no_base", r"'adapter\.bin'\] is neither safetensors nor text"),
    (MergesNothing, "merges_or_says_why_not", "is not plain: .*shift"),
    (MergesWrongly, "merges_or_says_why_not", "outputs differ by .* after the merge"),
    (RefusesWithoutReason, "merges_or_says_why_not", "without a reason: no"),
    (AttachesTwice, "second_attach_is_refused", "was not refused"),
    (SpoilsTheFirst, "second_attach_is_refused", r"changed .*shift"),
    (FreezesTheFirst, "second_attach_is_refused", r"froze .*shift"),
    (CannotBeSwitchedOff, "can_be_switched_off", "while switched off"),
    (StaysOff, "can_be_switched_off", "switched off and on again"),
]


@pytest.mark.parametrize(("broken", "check", "says"), BROKEN, ids=[broken.__name__ for broken, *_ in BROKEN])
def test_a_broken_adapter_is_caught(broken: type[Shift], check: str, says: str) -> None:
    quantizer = None if broken.quantizer is None else registries.build().quantizers[broken.quantizer]
    with pytest.raises(ContractViolation, match=f"^adapter 'shift' on the tiny {broken.kind}.*: .*{says}"):
        ADAPTER_CHECKS[check](AdapterCase(broken(), broken.kind, quantizer))


def test_saving_no_tensors_is_caught() -> None:
    with pytest.raises(ContractViolation, match=r"saved no safetensors file"):
        ADAPTER_CHECKS["file_holds_no_base"](AdapterCase(SavesNothing(), "decoder"))


def test_every_check_has_a_broken_adapter() -> None:
    assert {check for _, check, _ in BROKEN} == set(ADAPTER_CHECKS)


@pytest.mark.parametrize("check", ADAPTER_CHECKS)
def test_the_sound_one_passes(check: str) -> None:
    ADAPTER_CHECKS[check](AdapterCase(Shift(), "encoder"))


@pytest.mark.parametrize("check", [name for name in ADAPTER_CHECKS if name.endswith("_nothing")])
def test_and_on_a_quantised_decoder(check: str) -> None:
    ADAPTER_CHECKS[check](AdapterCase(OnDecoders(), "decoder", registries.build().quantizers["nf4"]))


class RefusesDecoders(Shift):
    reason = "'shift' needs a layer of BERT's, and LlamaForCausalLM has none"

    def check(self, options: Any, facts: Any) -> list[Problem]:
        return [] if facts.model_type == "bert" else [Problem("adapter.name", self.reason)]


class RefusesEverything(Shift):
    def check(self, options: Any, facts: Any) -> list[Problem]:
        return [Problem("adapter.name", f"'shift' does not like {facts.architecture}")]


class RefusesSilently(Shift):
    def check(self, options: Any, facts: Any) -> list[Problem]:
        return [Problem("adapter.name", "")]


def test_all_checks_at_once_and_what_was_refused() -> None:
    assert check_adapter(RefusesDecoders()) == {"shift-decoder": f"adapter.name: {RefusesDecoders.reason}"}


def test_check_adapter_finds_a_broken_one() -> None:
    with pytest.raises(ContractViolation, match="before the first step"):
        check_adapter(NotTheIdentity(), models=["encoder"])


def test_an_adapter_that_refuses_every_model_has_not_passed() -> None:
    with pytest.raises(ContractViolation, match=r"refuses every model: .*BertFor.*LlamaFor"):
        check_adapter(RefusesEverything())


def test_a_refusal_needs_a_reason() -> None:
    with pytest.raises(ContractViolation, match="without a reason that helps"):
        adapter_cases(RefusesSilently())


def test_numbers_below_one_are_no_zeros_of_the_base() -> None:
    """A cast to the base's integers would make them so; a copy in another dtype is a copy all the same."""
    zeros, numbers = torch.zeros(1, 256, dtype=torch.int64), torch.rand(16, 16)
    assert not _same_values(zeros, numbers)
    assert _same_values(numbers.bfloat16(), numbers.bfloat16().float().T)
    assert _same_values(torch.arange(256), torch.arange(256.0))
