"""Other people's tests, with our parts in place of theirs: whatever fails then, and does not fail without, is ours.

Fetched from the package index into the user's cache when they run; skipped, with the reason, where that cannot be.
bitsandbytes publishes no source archive of its present versions, so that the kinds of its cases are in
`tests/kernels/test_stored_values.py`, written anew.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
from upstream import Outcome, Suite, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]
SECONDS = 3000

PEFT = Suite(
    package="peft",
    version=version("peft"),
    licence="Apache-2.0",
    files=("tests/test_custom_models.py", "tests/test_lorafa.py", "tests/test_lora_variants.py"),
    plugin="in_peft",
    # Sharding needs processes of its own, and 4,000 tests look at nothing but dtypes.
    chosen="not Fsdp and not test_adapter_dtype_autocast",
)
LIGER = Suite(
    package="liger-kernel",
    version="0.8.5",
    licence="BSD-2-Clause",
    files=("test/transformers/test_fused_linear_cross_entropy.py",),
    plugin="in_liger",
    path=("src", "."),
)

#: By suite: tests, by a part of their names, that hold for the originals and need not for ours, and why.
NOT_APPLICABLE: dict[str, dict[str, str]] = {
    "peft": {"test_repr_lora_linear": "a layer's repr says FusedLora, the name of its class, and not lora.Linear"},
    "liger-kernel": {},
}
#: What Liger-Kernel's loss can do and ours cannot; its tests of that are skipped, by name.
LIGER_ALONE = (
    "softcap, label smoothing, z loss, class weights, reduction none, token scaling, accuracy, predicted tokens"
)


def different(suite: Suite, theirs: Outcome, ours: Outcome) -> list[str]:
    """Tests that passed with the originals and failed with ours, with the reasons, but for those that do not apply."""
    excused = NOT_APPLICABLE[suite.package]
    found = sorted(theirs.passed & ours.failed)
    return [f"{name}: {ours.reasons[name]}" for name in found if not any(part in name for part in excused)]


def test_peft_with_our_lora(tmp_path: Path) -> None:
    theirs, ours = (run(PEFT, parts, tmp_path, SECONDS) for parts in ("theirs", "ours"))
    assert not different(PEFT, theirs, ours)
    assert len(theirs.passed) > 1000 and ours.counts["linear.product"] > 100, "our part was hardly called"


@pytest.mark.parametrize("parts", ["chunked", "sliced"])
def test_liger_kernels_loss_with_ours(parts: str, tmp_path: Path) -> None:
    theirs, ours = (run(LIGER, which, tmp_path, SECONDS) for which in ("theirs", parts))
    assert not different(LIGER, theirs, ours)
    assert len(ours.passed) > 40 and ours.counts[parts] >= len(ours.passed), LIGER_ALONE
