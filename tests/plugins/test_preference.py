"""preference: the losses and their gradients by hand in float64, the reference, rows of every shape, real training."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import log_softmax

from pefttool import run
from pefttool.api.facts import Facts
from pefttool.api.values import Row, Setting
from pefttool.config import recipe as recipes
from pefttool.config import registry as registries
from pefttool.data.encoding import Encoded, encode
from pefttool.inference import reference_model
from pefttool.inference.predictor import Predictor
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool.testing.bench import CPU
from pefttool.testing.models import model_folder, tiny_tokenizer
from pefttool_text import preference_rows
from pefttool_text.batching import IGNORE
from pefttool_text.preference import PreferenceTuning

TASK = PreferenceTuning()
PLAIN = TASK.Options()
USER, YES, NO = ({"role": r, "content": c} for r, c in (("user", "hi"), ("assistant", "yes"), ("assistant", "no")))
PAIRS = (("hi", "hello", "go away"), ("why?", "because of this and of that", "no"), ("a question", "y", "x"))
ROWS = [Row({"prompt": p, "chosen": c, "rejected": r}) for p, c, r in PAIRS]


def setting(**options: Any) -> Setting:
    return Setting(TASK.Options(**options), sequence_length=160, generation={"max_new_tokens": 3, "do_sample": False})


@pytest.mark.parametrize(
    ("values", "prompt"),
    [
        ({"prompt": "hi", "chosen": "yes", "rejected": "no"}, [USER]),
        ({"question": "hi", "chosen": "yes", "rejected": "no"}, [USER]),
        ({"prompt": [USER], "chosen": "yes", "rejected": "no"}, [USER]),
        ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, [USER]),
        ({"prompt": [USER], "chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
        ({"prompt": "hi", "chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
        ({"chosen": [USER, YES], "rejected": [USER, NO]}, [USER]),
        ({"chosen": [USER, NO, USER, YES], "rejected": [USER, NO, USER, NO]}, [USER, NO, USER]),
        ({"prompt": "hi", "system": "Be kind.", "chosen": "yes", "rejected": "no"},
         [{"role": "system", "content": "Be kind."}, USER]),
        ({"prompt": [{"from": "human", "value": "hi"}], "chosen": "yes", "rejected": "no"}, [USER]),
    ],
)  # fmt: skip
def test_usual_rows_are_understood(values: dict[str, Any], prompt: list[dict[str, str]]) -> None:
    found = preference_rows.find(values, PLAIN)
    assert (found.prompt, found.chosen, found.rejected) == (prompt, YES, NO)
    assert TASK.recognise(list(values), [values]) and TASK.check_input(values, PLAIN) is None
    preview = TASK.preview(TASK.encode(Row(values), tiny_tokenizer(), setting()), tiny_tokenizer())
    asked = "".join(f"<|im_start|>{t['role']}\n{t['content']}<|im_end|>\n" for t in prompt)
    lines = [f"{kind}: {asked}<|im_start|>assistant\n«{text}<|im_end|>»\n" for kind, text in
             (("chosen", "yes"), ("rejected", "no"))]  # fmt: skip
    assert preview == "\n".join(lines)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "expected one of 'rejected', 'dispreferred'"),
        ({"chosen": "yes", "rejected": "no"}, "expected one of 'prompt', 'question', 'instruction'"),
        ({"prompt": " ", "chosen": "yes", "rejected": "no"}, "column 'prompt': found ' ', expected text or messages"),
        ({"prompt": "hi", "chosen": 3, "rejected": "no"}, "column 'chosen': found 3"),
        ({"prompt": "hi", "chosen": "yes", "rejected": ""}, "column 'rejected': found ''"),
        ({"prompt": "hi", "chosen": "yes", "rejected": "yes"}, "found the same answer twice"),
        ({"prompt": [USER, YES], "chosen": "yes", "rejected": "no"}, "ends with the assistant, expected the user's"),
        ({"prompt": [YES], "chosen": "yes", "rejected": "no"}, "expected the user to speak first"),
        ({"prompt": [USER], "chosen": [YES, USER, YES], "rejected": [NO]}, "found 3 messages after the prompt"),
        ({"prompt": "hi", "chosen": [{"role": "x", "content": ""}], "rejected": "no"}, "found role 'x'"),
    ],
)
def test_bad_rows_say_what_was_found(values: dict[str, Any], complaint: str) -> None:
    assert complaint in (TASK.check_row(values, PLAIN) or "")
    assert TASK.recognise(list(values), [values]) is None


ROLES = st.sampled_from(["user", "assistant", "system", "x"])
MESSAGES = st.lists(st.fixed_dictionaries({"role": ROLES, "content": st.text(max_size=2)}), max_size=3)
VALUE = st.one_of(st.none(), st.text(max_size=3), MESSAGES)


@given(prompt=VALUE, chosen=VALUE, rejected=VALUE)
def test_a_row_is_refused_in_one_line_or_can_be_encoded(prompt: Any, chosen: Any, rejected: Any) -> None:
    values = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    complaint = TASK.check_row(values, PLAIN)
    if complaint is None:
        assert TASK.encode(Row(values), tiny_tokenizer(), setting())["weight"] == 1
    else:
        assert len(complaint.splitlines()) == 1


def test_without_a_chat_template_a_text_is_continued() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    preview = TASK.preview(TASK.encode(ROWS[0], tokenizer, setting()), tokenizer)
    assert preview == "chosen: hi«hello<|im_end|>»\nrejected: hi«go away<|im_end|>»"
    assert TASK.prompt_ids(Row({"text": "hi"}), tokenizer, setting()) == tokenizer("hi")["input_ids"]


def test_each_answer_may_have_half_of_the_length() -> None:
    row = Row({"prompt": "hi", "chosen": "c" * 100, "rejected": "r"})
    encoded = TASK.encode(row, tiny_tokenizer(), Setting(PLAIN, sequence_length=100))
    assert encoded["chosen"] == 50 and encoded["length"] < 100 and encoded["truncated"] and encoded["weight"] == 1
    assert TASK.encode(row, tiny_tokenizer(), Setting(PLAIN, sequence_length=20))["weight"] == 0  # the prompt alone


@pytest.fixture(scope="module")
def model() -> Any:
    read = load_model(Loading(model_folder("decoder"), TASK, setting(), None, Facts(architecture=""), "cpu", "float32"))
    loaded = read.model
    return loaded.double().eval()


def by_hand(model: Any, examples: Any) -> torch.Tensor:
    """Log-probabilities `[B, 2]` and token counts `[B, 2]`, stacked, token by token, without padding or batches."""
    found = []
    for e in examples:
        for part in (slice(e["chosen"]), slice(e["chosen"], None)):
            ids, labels = e["input_ids"][part], e["labels"][part]
            logits = log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
            own = [logits[i - 1, label] for i, label in enumerate(labels) if label != IGNORE]
            found.append(torch.stack([torch.stack(own).sum(), torch.tensor(float(len(own)), dtype=torch.float64)]))
    return torch.stack(found).view(-1, 2, 2)


FORMULAS = {
    "sigmoid": lambda h, n, beta, e: -(1 - e) * torch.sigmoid(beta * h).log() - e * torch.sigmoid(-beta * h).log(),
    "hinge": lambda h, n, beta, e: torch.relu(1 - beta * h),
    "ipo": lambda h, n, beta, e: (h - 1 / (2 * beta)) ** 2,
}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)])
def test_the_loss_and_its_gradients_are_the_formulas(model: Any, kind: str, smoothing: float, packing: bool) -> None:
    """In float64, against a reference that the model has moved away from."""
    chosen = setting(loss=kind, beta=0.3, label_smoothing=smoothing)
    tokenizer = tiny_tokenizer()
    examples = [TASK.encode(row, tokenizer, chosen) for row in ROWS]
    draws = torch.Generator().manual_seed(5)
    if packing:
        assert TASK.check_packing(model, examples, tokenizer, chosen) is None
        chosen = Setting(**{**vars(chosen), "packing": True})
    with torch.no_grad():
        policy = by_hand(model, examples)
        moved = policy[..., 0] + torch.randn(3, 2, dtype=torch.float64, generator=draws) * 3
    known = [dict(zip(("reference_chosen", "reference_rejected"), r.tolist(), strict=True)) for r in moved]
    batch = TASK.collate([{**e, **k} for e, k in zip(examples, known, strict=True)], tokenizer, chosen)
    loss = TASK.loss(model, batch, chosen)
    assert float(loss.weight) == 3
    model.zero_grad()
    loss.sum.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}

    policy = by_hand(model, examples)
    ratios = policy[..., 0] - moved
    if kind == "ipo":
        ratios = ratios / policy[..., 1]
    expected = FORMULAS[kind](ratios[:, 0] - ratios[:, 1], None, 0.3, smoothing).sum()
    assert float(loss.sum.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    model.zero_grad()
    expected.backward()
    for name, parameter in model.named_parameters():
        assert float((gradients[name] - parameter.grad).norm()) <= 1e-4 * float(parameter.grad.norm()), name


def test_what_is_preferred_is_rewarded(model: Any) -> None:
    """Rewards are beta times what was gained over the base; accuracy and margin are of these."""
    outputs = torch.tensor([[[2.0, 1.0], [-5.0, -4.0]], [[0.0, 0.0], [-1.0, -2.0]], [[-1.0, 3.0], [-1.0, -2.0]]])
    predictions = TASK.decode(outputs, setting())
    metrics = TASK.metrics(predictions, ROWS, 0.5, setting())
    assert metrics == pytest.approx(
        {"loss": 0.5, "reward_accuracy": 0.5, "margin": -1.0, "reward_chosen": 1 / 3, "likelihood_accuracy": 2 / 3}
    )


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo"])
def test_before_the_first_step_the_loss_is_known(model: Any, kind: str) -> None:
    chosen, tokenizer = setting(loss=kind, beta=0.25), tiny_tokenizer()
    data = encode(ROWS, TASK, tokenizer, chosen)
    data = reference_model.carrying(
        data, reference_model.ask(Predictor(model, TASK, tokenizer, chosen, CPU), data.examples, batch_size=2)
    )
    loss = TASK.loss(model, TASK.collate(data.examples, tokenizer, chosen), chosen)
    each = {"sigmoid": math.log(2), "hinge": 1.0, "ipo": (1 / (2 * 0.25)) ** 2}[kind]
    assert float(loss.sum.detach()) / 3 == pytest.approx(each, abs=1e-5)


def test_the_base_is_asked_in_halves_where_memory_runs_out(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, tokenizer = setting(), tiny_tokenizer()
    data = encode(ROWS, TASK, tokenizer, chosen)
    whole = reference_model.ask(Predictor(model, TASK, tokenizer, chosen, CPU), data.examples)
    prepare, sizes = TASK.prepare, []

    def short_of_memory(model: Any, batch: Any, setting: Setting) -> Any:
        sizes.append(len(batch["input_ids"]) // 2)
        if sizes[-1] > 1:
            raise MemoryError
        return prepare(model, batch, setting)

    monkeypatch.setattr(TASK, "prepare", short_of_memory, raising=False)
    parts = reference_model.ask(Predictor(model, TASK, tokenizer, chosen, CPU), data.examples)
    assert sizes[0] == 3 and sizes.count(1) == 3
    assert all(torch.allclose(parts[name], whole[name], rtol=1e-6) for name in whole)


def test_smoothing_is_for_the_sigmoid_alone() -> None:
    facts = Facts(architecture="", output_modules=("lm_head",))
    (problem,) = TASK.check(TASK.Options(loss="ipo", label_smoothing=0.1), facts)
    assert problem.key == "task.label_smoothing" and "'ipo'" in problem.message
    assert TASK.check(TASK.Options(label_smoothing=0.1), facts) == []
    with pytest.raises(ValueError, match=r"less than 0\.5"):
        TASK.Options(label_smoothing=0.5)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_run_learns_to_prefer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: str) -> None:
    """`eval` of the folder finds the same figures: of the base without the adapter, whatever the adapter is. A second
    run asks the base nothing."""
    from pefttool.data.batches import by_length
    from pefttool.data.corpus import load as load_rows
    from pefttool.export.reload import reload
    from pefttool.inference.evaluate import evaluate

    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    pairs = [{"prompt": f"q{i}", "chosen": "yes indeed", "rejected": "no"} for i in range(24)]
    rows.write_text("\n".join(map(json.dumps, pairs)), "utf-8")
    document = {
        "model": str(model_folder("decoder")),
        "adapter": {"name": adapter},
        "task": {"name": "preference"},
        "data": {"train": str(rows), "eval_fraction": 0.25},
        "train": {"batch_size": 6, "epochs": 2, "sequence_length": 128, "rehearse": False, "learning_rate": 1e-3},
        "generation": {"max_new_tokens": 2},
        "device": "cpu",
        "dtype": "float32",
    }
    registry = registries.build()
    asked: list[int] = []
    prepare = registry.tasks["preference"].prepare
    monkeypatch.setattr(
        registry.tasks["preference"],
        "prepare",
        lambda *arguments: (asked.append(1), prepare(*arguments))[1],
        raising=False,
    )
    for name in ("first", "second"):
        resolved = recipes.resolve({**document, "out": str(tmp_path / name)}, registry)
        asked.clear()
        finished = run.run(resolved, registry)
        assert len(asked) == (4 if name == "first" else 0)  # 18 and 6 rows, 6 at a time
        assert finished.before["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert finished.before["margin"] == pytest.approx(0, abs=1e-4)
        assert finished.after["loss"] < 0.6 and finished.after["reward_accuracy"] == 1.0
        assert set(finished.samples[0]["after"]) == {"answer"}
    loaded = reload(tmp_path / "second", registry)
    data = loaded.prepared(encode(load_rows(resolved, registry).eval, loaded.task, loaded.processor, loaded.setting))
    order = by_length([e["length"] for e in data.examples], 6)
    again, _ = evaluate(
        Predictor(loaded.model, loaded.task, loaded.processor, loaded.setting, loaded.choice),
        Encoded(tuple(data.examples), tuple(data.rows), ()),
        order,
    )
    assert again == pytest.approx(dict(finished.after), abs=1e-4)
