"""masked-lm: what is hidden depends on the text and the seed alone; new output layers train; masks are filled."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import samples_text
import text_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from text_models import fit, plain_peft_difference
from tiny_models import run_without_pefttool

from pefttool import Facts, ModelError, Row, Setting
from pefttool.config import registry
from pefttool.models.pretrained import LocalPretrained
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.models import model_folder, tiny_masked, tiny_tokenizer
from pefttool_head.adapter import HeadAdapter
from pefttool_lora.adapter import LoraAdapter
from pefttool_text import masked_head, masking
from pefttool_text.batching import IGNORE
from pefttool_text.masked_lm import MaskedLM

TASK = MaskedLM()
IDS = st.lists(st.integers(10, 99), min_size=1, max_size=60)


@given(IDS, st.floats(0.01, 1.0), st.integers(0, 5))
def test_masking_hides_the_share_asked_and_says_what_it_hid(ids: list[int], fraction: float, seed: int) -> None:
    maskable = list(range(1, len(ids)))
    masked = masking.mask(ids, maskable, fraction, 7, 100, seed)
    asked = [i for i, label in enumerate(masked.labels) if label != IGNORE]
    assert len(asked) == min(len(maskable), max(1, round(len(maskable) * fraction)))
    assert set(asked) <= set(maskable)
    assert all(masked.labels[i] == ids[i] for i in asked)
    assert all(masked.input_ids[i] == ids[i] for i in range(len(ids)) if i not in asked)
    assert masked == masking.mask(ids, maskable, fraction, 7, 100, seed)


def test_most_hidden_tokens_become_the_mask_some_another_and_some_stay() -> None:
    found = {"mask": 0, "stays": 0, "other": 0}
    for seed in range(300):
        masked = masking.mask([50] * 20, range(20), 0.5, 7, 40, seed)
        for token, label in zip(masked.input_ids, masked.labels, strict=True):
            if label != IGNORE:
                found["mask" if token == 7 else "stays" if token == 50 else "other"] += 1
    shares = {what: count / 3000 for what, count in found.items()}
    assert shares == pytest.approx({"mask": 0.8, "stays": 0.1, "other": 0.1}, abs=0.03)


def test_chance_elsewhere_and_the_company_in_a_batch_change_nothing() -> None:
    import random

    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    setting, row = Setting(TASK.Options(), seed=3), Row({"text": "the same line in every epoch"})
    random.seed(1)
    first = TASK.encode(row, tokenizer, setting)
    random.seed(2)
    torch.manual_seed(5)
    assert TASK.encode(row, tokenizer, setting) == first
    assert TASK.encode(row, tokenizer, replace(setting, seed=4)) != first
    assert TASK.encode(Row({"text": "the same line in every epoch!"}), tokenizer, setting)["labels"] != first["labels"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder alone, as sentence encoders are published, with a tokenizer that has a mask."""
    from transformers import BertForMaskedLM

    folder = tiny_masked(tmp_path_factory.mktemp("bare"))
    BertForMaskedLM.from_pretrained(folder).bert.save_pretrained(folder)
    return folder


def test_output_layers_that_the_model_lacks_are_the_new_head(bare: Path) -> None:
    for folder, heads in ((bare, ("cls.predictions.transform",)), (model_folder("masked"), ())):
        for abstract in (False, True):
            loaded = TASK.load(LocalPretrained(folder, abstract=abstract), Setting(TASK.Options()))
            assert TASK.head_modules(loaded.model) == heads
    read = load_model(Loading(bare, TASK, Setting(TASK.Options()), None, Facts(architecture=""), "cpu", "bfloat16"))
    model = read.model
    assert {p.dtype for p in model.get_submodule("cls.predictions.transform").parameters()} == {torch.float32}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_logits_are_those_of_the_whole_model_where_they_are_asked() -> None:
    read = load_model(
        Loading(model_folder("masked"), TASK, Setting(TASK.Options()), None, Facts(architecture=""), "cpu", "float32")
    )
    model = read.model
    ids = torch.arange(24).view(2, 12) + 20
    asked = torch.zeros(2, 12, dtype=torch.bool)
    asked[0, 3] = asked[1, 0] = asked[1, 11] = True
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        some = masked_head.logits(model, {"input_ids": ids}, asked)
    torch.testing.assert_close(some, whole[asked])
    assert not model.get_output_embeddings()._forward_pre_hooks


@pytest.fixture(scope="module")
def tuned() -> Any:
    return fit(TASK, samples_text.plain(Path()), LoraAdapter(), kind="masked", steps=80, mask_fraction=0.4)


def test_hidden_words_are_learnt(tuned: Any) -> None:
    assert tuned.losses[-1] < tuned.losses[0] / 2
    metrics = tuned.metrics()
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))


def test_masks_are_filled(tuned: Any) -> None:
    text = "to be or not to be"
    filled = tuned.predict([{"text": f"{text[:3]}[MASK]{text[4:]}"}])[0]
    (mask,) = filled["masks"]
    assert len(mask["tokens"]) == 5 and mask["scores"] == sorted(mask["scores"], reverse=True)
    assert "truth" not in mask and len(filled["text"]) == len(text)
    cut = tuned.predict([{"text": "x" * 200 + "[MASK] [MASK]"}])[0]
    assert cut["masks"] == [None, None]
    asked = tuned.predict([{"text": text}])[0]
    assert len(asked["masks"]) == round(len(text) * 0.4) and all("truth" in mask for mask in asked["masks"])


def on_bare(bare: Path, adapter: Any, patch: pytest.MonkeyPatch) -> Any:
    patch.setattr(text_models, "model_folder", lambda kind: bare)
    found = fit(TASK, samples_text.plain(bare), adapter, kind="masked", steps=5)
    assert found.heads == ("cls.predictions.transform",)
    return found


def test_plain_peft_loads_what_was_saved(
    tuned: Any, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = [(tuned, tmp_path / "own"), (on_bare(bare, LoraAdapter(), monkeypatch), tmp_path / "new")]
    assert plain_peft_difference(saved, "AutoModelForMaskedLM") <= 1e-5


def test_transformers_alone_loads_a_new_head(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = on_bare(bare, HeadAdapter(), monkeypatch)
    tuned.save(tmp_path)
    inputs = {n: t for n, t in tuned.batch().items() if n != "labels"}
    with torch.no_grad():
        torch.save({"inputs": inputs, "expected": tuned.model(**inputs).logits}, tmp_path / "expected.pt")
    printed = run_without_pefttool(f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
from load_head import model
stored = torch.load({str(tmp_path / "expected.pt")!r})
with torch.no_grad():
    print(float((model(**stored["inputs"]).logits - stored["expected"]).abs().max()))
""")
    assert float(printed) <= 1e-5


def test_plain_text_is_no_reason_to_choose_it() -> None:
    rows = samples_text.plain(Path())
    assert TASK.recognise(["text"], rows) is None
    found = registry.build()
    claimed = [name for name in found.tasks if found.tasks[name].recognise(["text"], rows)]
    assert claimed == ["causal-lm"]


def test_a_tokenizer_without_a_mask_is_refused() -> None:
    with pytest.raises(ModelError, match="no mask token"):
        TASK.load(LocalPretrained(model_folder("encoder")), Setting(TASK.Options()))


def test_a_run_is_planned_and_repeats_itself(tmp_path: Path) -> None:
    """The core's own run on it: simulated, trained, the same bits twice."""
    from pefttool import run
    from pefttool.config import recipe

    found = registry.build()
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": f"line {i} of {i * i % 7} things"}) + "\n" for i in range(24)))
    results = []
    for name in ("a", "b"):
        document = {
            "model": str(model_folder("masked")),
            "adapter": {"name": "lora"},
            "task": {"name": "masked-lm"},
            "data": {"train": str(data), "cache": False},
            "train": {"epochs": 2, "batch_size": 4},
            "device": "cpu",
            "dtype": "float32",
            "out": str(tmp_path / name),
        }
        results.append(run.run(recipe.resolve(document, found), found))
    assert results[0].after == results[1].after and results[0].before != results[0].after
    memory = json.loads((tmp_path / "a" / "metrics.json").read_text())["memory"]
    assert memory["simulated_bytes"] == pytest.approx(memory["measured_bytes"], rel=0.05)
