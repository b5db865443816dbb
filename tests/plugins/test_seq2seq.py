"""seq2seq: rows of every usual shape, the loss that the models themselves have, adapters on both halves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seq2seq_models import SEQ2SEQ, store_untrained

from pefttool import run
from pefttool.api.errors import ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe
from pefttool.config import registry as registries
from pefttool.export.reload import reload
from pefttool.models import facts
from pefttool.models.pretrained import LocalPretrained
from pefttool.nn import gradient_checkpointing
from pefttool.setup import attach
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.models import model_folder, tiny_tokenizer
from pefttool.toolkit.model_parts import last_layer_parameters
from pefttool_text import text_scores
from pefttool_text.batching import IGNORE, kind_of
from pefttool_text.seq2seq import Seq2Seq

TASK = Seq2Seq()
PLAIN = TASK.Options()
ROWS = [
    Row({"source": s, "target": t})
    for s, t in (("one", "uno"), ("a much longer one than that", "uno mucho más largo"), ("2", "dos"))
]
ALL = sorted(SEQ2SEQ)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in SEQ2SEQ.items()}


def setting(**options: Any) -> Setting:
    return Setting(TASK.Options(**options), sequence_length=128, generation={"max_new_tokens": 4, "do_sample": False})


def load(folder: Path, chosen: Setting) -> tuple[Any, Any, Facts]:
    read = load_model(Loading(folder, TASK, chosen, None, Facts(architecture=""), "cpu", "float32"))
    model, processor, missing = read.model, read.processor, read.missing
    assert not missing
    return model, processor, facts.inspect(model, TASK, device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("values", "options", "pair"),
    [
        ({"source": "a", "target": "b"}, {}, ("a", "b")),
        ({"text": "a", "summary": "b"}, {}, ("a", "b")),
        ({"document": "a", "summary": "b", "id": 3}, {}, ("a", "b")),
        ({"article": "a", "highlights": "b"}, {}, ("a", "b")),
        ({"translation": {"en": "a", "es": "b"}}, {}, ("a", "b")),
        ({"translation": {"en": "a", "es": "b"}}, {"source_lang": "es"}, ("b", "a")),
        ({"translation": {"en": "a", "es": "b"}}, {"target_lang": "en"}, ("b", "a")),
        ({"translation": {"en": "a", "es": "b", "fr": "c"}}, {"source_lang": "fr", "target_lang": "en"}, ("c", "a")),
        ({"en": "a", "es": "b"}, {"source_lang": "es", "target_lang": "en"}, ("b", "a")),
        ({"en": "a", "es": "b", "n": 1}, {"source_lang": "en", "target_lang": "es"}, ("a", "b")),
        ({"q": "a", "s": "b"}, {"source_column": "q", "target_column": "s"}, ("a", "b")),
        ({"text": "a", "short": "b"}, {"target_column": "short"}, ("a", "b")),
    ],
)
def test_usual_rows_are_understood(values: dict[str, Any], options: dict[str, Any], pair: tuple[str, str]) -> None:
    chosen = setting(**options)
    assert TASK.check_row(values, chosen.options) is None and TASK.check_input(values, chosen.options) is None
    encoded = TASK.encode(Row(values), tiny_tokenizer(), chosen)
    assert TASK.preview(encoded, tiny_tokenizer()) == f"{pair[0]} -> «{pair[1]}<|im_end|>»"
    assert TASK.key(values, chosen.options) == pair[0]


@pytest.mark.parametrize(
    ("values", "options", "complaint"),
    [
        ({"a": 1}, {}, "found columns 'a', expected 'source'"),
        ({"source": "a"}, {}, "expected 'source' and 'target'"),
        ({"source": 3, "target": "b"}, {}, "column 'source': found 3, expected text"),
        ({"source": "a", "target": " "}, {}, "column 'target': found ' ', expected text"),
        ({"translation": {"en": "a", "es": None}}, {}, "column 'translation', language 'es': found None"),
        ({"translation": {"en": "a", "es": "b"}}, {"source_lang": "fr"}, "language 'fr': found 'en', 'es' only"),
        ({"translation": {"a": "a", "b": "b", "c": "c"}}, {}, "-o task.source_lang=LANGUAGE"),
        ({"en": "a"}, {"source_lang": "en", "target_lang": "es"}, "column 'es': found 'en' only"),
        ({"source": "a", "target": "b"}, {"target_column": "t"}, "expected 't' (name yours with -o task.target_column"),
    ],
)
def test_bad_rows_say_what_was_found(values: dict[str, Any], options: dict[str, Any], complaint: str) -> None:
    assert complaint in (TASK.check_row(values, TASK.Options(**options)) or "")


def test_the_languages_of_most_rows_are_those_of_all() -> None:
    french = {"translation": {"en": "c", "fr": "d"}}
    spanish = [{"translation": {"en": "a", "es": "b"}}, {"translation": {"es": "b", "en": "a"}}]
    rows = [Row(values) for values in (french, spanish[0], *spanish, spanish[0])]
    options = TASK.settle(rows, TASK.Options())
    assert (options.source_lang, options.target_lang) == ("en", "es")
    assert "language 'es': found 'en', 'fr' only, expected text in 'es'" in str(TASK.check_row(french, options))
    assert [TASK.check_row(values, options) for values in spanish] == [None, None]
    assert {TASK.key(values, options) for values in spanish} == {"a"}, "whatever their order in a row"
    assert TASK.check_input({"translation": {"en": "a"}}, options) is None
    turned = TASK.settle(rows, TASK.Options(source_lang="es"))
    assert (turned.source_lang, turned.target_lang) == ("es", "en")
    plain = TASK.Options()
    assert TASK.settle([Row({"source": "a", "target": "b"})], plain) == plain


@given(values=st.dictionaries(st.sampled_from(["source", "text", "translation", "target", "en"]), st.one_of(
    st.none(), st.text(max_size=3), st.integers(), st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=3)
), max_size=4), lang=st.sampled_from([None, "en", "es"]))  # fmt: skip
def test_a_row_is_refused_in_one_line_or_can_be_encoded(values: dict[str, Any], lang: str | None) -> None:
    chosen = setting(source_lang=lang)
    complaint = TASK.check_row(values, chosen.options)
    if complaint is None:
        assert TASK.encode(Row(values), tiny_tokenizer(), chosen)["weight"] > 1
    else:
        assert len(complaint.splitlines()) == 1


def test_a_text_that_is_typed_is_the_source_whatever_the_columns_are_called() -> None:
    for options in ({"source_column": "q"}, {"source_lang": "en", "target_lang": "es"}, {}):
        assert TASK.check_input({"text": "one"}, TASK.Options(**options)) is None
    assert TASK.check_row({"text": "one"}, TASK.Options(source_column="q")) is not None


def test_the_prefix_stands_before_every_source() -> None:
    encoded = TASK.encode(ROWS[0], tiny_tokenizer(), setting(prefix="summarize: "))
    assert tiny_tokenizer().decode(encoded["input_ids"]) == "summarize: one"


@pytest.mark.parametrize(("source", "target", "kept"), [(30, 4, (27, 5)), (4, 60, (4, 28)), (60, 60, (16, 16))])
def test_source_and_target_share_the_length(source: int, target: int, kept: tuple[int, int]) -> None:
    row, chosen = Row({"source": "s" * source, "target": "t" * target}), Setting(PLAIN, sequence_length=32)
    encoded = TASK.encode(row, tiny_tokenizer(), chosen)
    assert (len(encoded["input_ids"]), len(encoded["labels"])) == kept
    assert encoded["truncated"] and encoded["length"] == 32 and encoded["weight"] == kept[1]


def test_targets_that_answers_may_not_be_as_long_as_are_counted_before_training() -> None:
    """Their tokens are bytes here, and the one that ends them counts: an answer of four holds three bytes."""
    examples = [TASK.encode(row, tiny_tokenizer(), setting()) for row in ROWS]
    lengths = [len(example["labels"]) for example in examples]
    longest = max(lengths)
    assert TASK.noted([], [e for e in examples if len(e["labels"]) <= 4], setting()) == []
    (told,) = TASK.noted([], examples, setting())
    assert told.startswith(f"{sum(n > 4 for n in lengths)} of 3 held-out targets are longer")
    assert f"the longest has {longest} tokens, generation.max_new_tokens is 4" in told
    assert told.endswith(f"raise it with -o generation.max_new_tokens={longest}")
    enough = Setting(PLAIN, generation={"max_new_tokens": longest})
    assert TASK.noted([], examples, enough) == []


@pytest.mark.parametrize("name", ALL)
def test_the_loss_is_the_models_own(folders: dict[str, Path], name: str) -> None:
    """Its mean over the target's tokens, times their number; whatever the batch is padded to."""
    chosen = setting()
    model, processor, _ = load(folders[name], chosen)
    examples = [TASK.encode(row, processor, chosen) for row in ROWS]
    batch = TASK.collate(examples, processor, chosen)
    loss = TASK.loss(model, batch, chosen)
    assert int(loss.weight) == sum(e["weight"] for e in examples) == int((batch["labels"] != IGNORE).sum())
    own = model(**batch).loss * loss.weight
    assert float(loss.sum.detach()) == pytest.approx(float(own.detach()), rel=1e-5)
    alone = sum(float(TASK.loss(model, TASK.collate([e], processor, chosen), chosen).sum.detach()) for e in examples)
    assert float(loss.sum.detach()) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_answers_do_not_depend_on_the_company(folders: dict[str, Path], name: str) -> None:
    chosen = setting()
    model, processor, _ = load(folders[name], chosen)
    together = TASK.predict(model, ROWS, processor, chosen)
    assert together == [TASK.predict(model, [row], processor, chosen)[0] for row in ROWS]
    assert all(isinstance(answer["target"], str) for answer in together)


@pytest.mark.parametrize("name", ALL)
def test_lora_trains_both_halves_and_checkpointing_changes_nothing(folders: dict[str, Path], name: str) -> None:
    registry, chosen = registries.build(), setting()
    lora = registry.adapters["lora"]
    gradients = []
    for mode in ("none", "non-reentrant", "reentrant"):
        model, processor, known = load(folders[name], chosen)
        adapted = attach.attach(model, lora, lora.Options(r=4), known)
        with torch.no_grad():
            for parameter in adapted.parameters().values():
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
        if mode != "none":
            gradient_checkpointing.install(adapted.model, reentrant=mode == "reentrant")
        adapted.model.train()
        batch = TASK.collate([TASK.encode(row, processor, chosen) for row in ROWS], processor, chosen)
        TASK.loss(adapted.model, batch, chosen).sum.backward()
        gradients.append({n: p.grad for n, p in adapted.parameters().items() if p.grad is not None})
    plain = gradients[0]
    for half in ("encoder.", "decoder."):
        assert any(half in n and float(g.norm()) > 0 for n, g in plain.items()), half
    assert any("ross" in n or "EncDec" in n or "encoder_attn" in n for n in plain)  # attention from one to the other
    for other in gradients[1:]:
        assert other.keys() == plain.keys()
        assert all(float((plain[n] - other[n]).norm()) <= 1e-4 * float(plain[n].norm()) for n in plain)


@pytest.mark.parametrize("name", ALL)
def test_the_last_blocks_are_the_decoders(folders: dict[str, Path], name: str) -> None:
    _, _, known = load(folders[name], setting())
    model, _, _ = load(folders[name], setting())
    halves = ["decoder" if "decoder." in layer.partition(".layer")[0] + "." else "encoder" for layer in known.layers]
    assert halves == sorted(halves, reverse=True) and set(halves) == {"encoder", "decoder"}
    assert known.recomputable and len(known.output_modules) == 1
    names = last_layer_parameters(model, known, 1)
    assert all(n.startswith(("decoder.", "model.decoder.")) for n in names)
    assert any(n.startswith(known.layers[-1]) for n in names) and not any(n.startswith(known.layers[-2]) for n in names)


def test_a_decoder_alone_is_refused() -> None:
    with pytest.raises(ModelError, match=r"needs an encoder-decoder model .* use --task chat or causal-lm"):
        TASK.load(LocalPretrained(model_folder("decoder"), abstract=True), setting())


@pytest.mark.parametrize("name", ALL)
def test_an_encoder_decoder_is_recognised_by_its_config(folders: dict[str, Path], name: str) -> None:
    config = LocalPretrained(folders[name], abstract=True).config
    assert kind_of(config) == "encoder-decoder" and TASK.recognise_model(config)


def test_a_missing_scorer_is_said_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_scores.importlib.util, "find_spec", lambda name: None)
    (problem,) = TASK.check(PLAIN, Facts(architecture=""))
    assert 'pip install "pefttool[text]"' in problem.message


@pytest.fixture
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    yield


def fine_tune(folder: Path, model: Path, **train: Any) -> run.Finished:
    words = {"red": "rojo", "blue": "azul", "green": "verde", "white": "blanco"}
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join([json.dumps({"source": s, "target": t}) for s, t in words.items()] * 6), "utf-8")
    document = {
        "model": str(model),
        "adapter": {"name": train.pop("adapter")},
        "generation": {"max_new_tokens": train.pop("max_new_tokens", 8)},
        "task": {"name": "seq2seq"},
        "data": {"train": str(rows), "eval": str(rows), "max_eval_rows": 4, "allow_overlap": True},
        "train": {"batch_size": 8, "sequence_length": 64, "rehearse": False, "evaluate_every": 1000, **train},
        "device": "cpu",
        "dtype": "float32",
        "out": str(folder / "out"),
    }
    registry = registries.build()
    return run.run(recipe.resolve(document, registry), registry)


def test_a_run_learns_to_answer(no_cache: None, tmp_path: Path) -> None:
    """From noise to the four answers there are; held-out rows are the same ones, since this asks for learning alone."""
    model = store_untrained(tmp_path / "model")
    finished = fine_tune(tmp_path, model, adapter="full", epochs=20, learning_rate=1e-2)
    assert finished.before["chrf"] < 15 and finished.after["chrf"] > 90
    assert set(finished.after) == {"chrf", "bleu", "rouge1", "rouge2", "rougeL", "loss"}
    answers = [sample["after"]["target"] for sample in finished.samples]
    assert answers == [sample["row"]["target"] for sample in finished.samples]


@pytest.mark.parametrize("options", [{"adapter": "lora"}, {"adapter": "head"}])
def test_other_adapters_train(
    no_cache: None, folders: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    finished = fine_tune(tmp_path, folders["bart"], **options, epochs=3)
    assert finished.after["loss"] < finished.before["loss"]
    loaded = reload(finished.folder, registries.build())
    rows = [Row(sample["row"]) for sample in finished.samples]
    again = loaded.predict(rows)
    assert again == [sample["after"] for sample in finished.samples]


def test_a_run_warns_of_answers_that_are_cut_before_it_trains(
    no_cache: None, folders: dict[str, Path], tmp_path: Path
) -> None:
    finished = fine_tune(tmp_path, folders["bart"], adapter="head", max_steps=1, max_new_tokens=1)
    events = [json.loads(line) for line in (finished.folder / "events.jsonl").read_text("utf-8").splitlines()]
    kinds = [event["type"] for event in events]
    (said,) = (
        i for i, e in enumerate(events) if e["type"] == "Notice" and "generation.max_new_tokens is 1" in e["text"]
    )
    assert events[said]["level"] == "warning" and said < kinds.index("TrainStarted")
