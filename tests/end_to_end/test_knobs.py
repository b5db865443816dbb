"""Whole runs with the knobs turned: what is learnt is the same to the bit where nothing else is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_run import CLASSIFY, EXACT, SMALL, run

pytestmark = pytest.mark.slow


def test_recomputing_and_a_rehearsal_change_no_byte_of_the_adapter(tmp_path: Path) -> None:
    arguments = ("--adapter", "lora", *CLASSIFY, *SMALL, *EXACT)
    knobs = {
        "plain": ("-o", "train.rehearse=false"),
        "rehearsed": (),
        "non-reentrant": ("-o", "train.gradient_checkpointing=non-reentrant"),
        "reentrant": ("-o", "train.gradient_checkpointing=reentrant"),
    }
    runs = {name: run(tmp_path / name, *arguments, *more) for name, more in knobs.items()}
    stored = {name: (done.folder / "adapter" / "adapter_model.safetensors").read_bytes() for name, done in runs.items()}
    assert len(set(stored.values())) == 1
    texts = [event["text"] for event in runs["rehearsed"].events if event["type"] == "Notice"]
    (said,) = [text for text in texts if text.startswith("rehearsal: ")]
    assert "the longest batch (8 rows of up to" in said
    assert not any(path.name.startswith(".") for path in runs["rehearsed"].folder.iterdir())


def test_eight_bit_adamw_learns_what_adamw_learns(tmp_path: Path) -> None:
    arguments = ("--adapter", "lora", *CLASSIFY, *SMALL, "-o", "train.checkpoint_every=4")
    runs = {o: run(tmp_path / o, *arguments, "-o", f"train.optimizer={o}") for o in ("adamw", "adamw_8bit")}
    losses = {name: [e["loss"] for e in done.events if e["type"] == "StepDone"] for name, done in runs.items()}
    assert losses["adamw"] != losses["adamw_8bit"] and losses["adamw"] == pytest.approx(losses["adamw_8bit"], abs=0.03)
    after = [done.result["after"]["loss"] for done in runs.values()]
    assert after[0] == pytest.approx(after[1], abs=0.02)
    for done in runs.values():
        assert sorted(path.name for path in (done.folder / "checkpoints").iterdir()) == ["step-4", "step-8"]
