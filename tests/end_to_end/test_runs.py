"""Whole runs on real models: four adapters, two kinds of task, and the folder that they leave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from real_run import CHAT, CLASSIFY, EXACT, SMALL, Finished, clean_python, pefttool, run

ADAPTERS = ("full", "head", "lora", "prefix")
TEXTS = ("a gem of a film", "two hours of my life that I will never get back, and I want them back now")


@pytest.fixture(scope="module", params=ADAPTERS)
def classified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    out = tmp_path_factory.mktemp("classify") / request.param
    return run(out, "--adapter", request.param, *CLASSIFY, *SMALL, *EXACT)


def predictions(folder: Path, *texts: str) -> list[dict[str, float]]:
    arguments = [part for text in texts for part in ("--text", text)]
    lines = pefttool("predict", str(folder), *arguments).stdout.splitlines()
    return [json.loads(line) for line in lines]


def test_the_run_folder_is_complete(classified: Finished) -> None:
    files = {path.name for path in classified.folder.iterdir()}
    assert {"recipe.yaml", "plan.json", "environment.json", "events.jsonl", "metrics.json", "adapter"} <= files
    assert not [p for p in classified.folder.rglob("*") if p.suffix in (".pt", ".bin", ".pkl", ".pth")]
    facts = classified.json("adapter/pefttool.json")
    assert facts["labels"] == ["negative", "positive"]
    assert facts["adapter_distribution"] == "pefttool" and len(facts["base"]["sha256"]) == 64
    kinds = [event["type"] for event in classified.events]
    assert kinds[0] == "RunStarted" and kinds[-2:] == ["RunFinished", "Notice"]
    assert classified.events[-1]["text"].startswith("loaded again, the adapter answers as the trained model did")
    assert kinds.count("StepDone") == 8
    assert kinds.index("TrainStarted") < kinds.index("StepDone") < kinds.index("TrainFinished")
    assert classified.json("metrics.json")["after"] == classified.result["after"]
    assert classified.json("environment.json")["world_size"] == 1
    memory = classified.json("metrics.json")["memory"]
    if classified.folder.name == "head":  # its features are cached: what is frozen did not run
        assert memory["measured_bytes"] < memory["simulated_bytes"]
    else:
        assert memory["simulated_bytes"] == pytest.approx(memory["measured_bytes"], rel=0.01)


def test_eval_of_the_folder_gives_the_runs_own_metrics(classified: Finished) -> None:
    again = json.loads(pefttool("eval", str(classified.folder), "--json").stdout)
    assert (again.pop("rows"), again.pop("left_out")) == (48, 0)
    assert again == pytest.approx(classified.result["after"], abs=1e-5)


PLAIN = {
    "lora": """
import sys
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2)
model = PeftModel.from_pretrained(base, sys.argv[2]).eval()
""",
    "full": """
import sys
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(sys.argv[2]).eval()
""",
    "head": """
import runpy, sys
loader = sys.argv[2] + "/load_head.py"
assert len(open(loader).readlines()) <= 15
model = runpy.run_path(loader)["model"]
""",
}
PLAIN["prefix"] = PLAIN["lora"]
ANSWER = """
import json, torch
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
for text in sys.argv[3:]:
    with torch.no_grad():
        print(json.dumps(model(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()))
"""


def test_a_clean_process_without_pefttool_gives_the_same_outputs(classified: Finished) -> None:
    adapter = classified.folder / "adapter"
    base = classified.json("adapter/pefttool.json")["base"]["path"]
    name = classified.json("adapter/pefttool.json")["adapter"]
    plain = [json.loads(line) for line in clean_python(PLAIN[name] + ANSWER, base, str(adapter), *TEXTS).splitlines()]
    own = [list(p["scores"].values()) for p in predictions(classified.folder, *TEXTS)]
    for a, b in zip(plain, own, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_predict_keeps_the_order_of_the_rows(classified: Finished, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in (*TEXTS, TEXTS[0])))
    lines = pefttool("predict", str(classified.folder), "--data", str(data), "--batch-size", "2").stdout.splitlines()
    first, second, third = (json.loads(line) for line in lines)
    assert first["label"] in ("negative", "positive")
    assert first["scores"] == pytest.approx(third["scores"], abs=1e-5)
    assert first["scores"] != pytest.approx(second["scores"], abs=1e-5)


def test_the_recipe_of_a_run_repeats_it_bit_for_bit(tmp_path: Path) -> None:
    arguments = ("--adapter", "lora", *CLASSIFY, *SMALL, "-o", "train.max_steps=3", "-o", "adapter.lora_dropout=0.1")
    first = run(tmp_path / "a", *arguments)
    second = run(tmp_path / "b", str(first.folder / "recipe.yaml"))
    names = {p.name for p in (first.folder / "adapter").iterdir()}
    assert names == {p.name for p in (second.folder / "adapter").iterdir()}
    for name in sorted(names):
        assert (first.folder / "adapter" / name).read_bytes() == (second.folder / "adapter" / name).read_bytes(), name
    recipes = [yaml.safe_load((r.folder / "recipe.yaml").read_text()) for r in (first, second)]
    assert recipes[0] == recipes[1]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["head", "full"])
def test_the_last_layers_can_be_trained_alone(adapter: str, tmp_path: Path) -> None:
    small = run(tmp_path / "k", "--adapter", adapter, *CLASSIFY, *SMALL, "-o", "adapter.train_last_layers=1")
    (started,) = (e for e in small.events if e["type"] == "TrainStarted")
    assert 1_774_000 < started["trainable_parameters"] < 2_100_000  # one block of MiniLM has 1,774,464
    assert predictions(small.folder, TEXTS[0])[0]["label"] in ("negative", "positive")


@pytest.mark.parametrize(
    "adapter", [pytest.param(name, marks=[] if name == "lora" else [pytest.mark.slow]) for name in ADAPTERS]
)
def test_chat_with_every_adapter(adapter: str, tmp_path: Path) -> None:
    quantize = () if adapter == "full" else ("--quantize", "nf4")
    arguments = ("--adapter", adapter, *CHAT, "-o", "quantize=null", *quantize, "-o", "train.max_steps=2")
    finished = run(tmp_path / adapter, *arguments)
    assert finished.result["after"]["loss"] < finished.result["before"]["loss"]
    assert all({"before", "after", "row"} <= set(sample) for sample in finished.result["samples"])
    again = json.loads(pefttool("eval", str(finished.folder), "--json").stdout)
    assert again["loss"] == pytest.approx(finished.result["after"]["loss"], rel=1e-4)
    said = pefttool("predict", str(finished.folder), "--text", "Hello!", "-o", "generation.max_new_tokens=5").stdout
    assert isinstance(json.loads(said)["answer"], str)


KL = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
base, adapter, ids = sys.argv[1], sys.argv[2], torch.tensor(json.loads(sys.argv[3]))
quantized = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.float32)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=quantized)
model = PeftModel.from_pretrained(model, adapter)
for module in model.modules():
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False
model.eval()
with torch.no_grad():
    print(json.dumps(model(input_ids=ids).logits[0].log_softmax(-1).flatten().tolist()))
"""


@pytest.mark.slow
def test_a_quantised_run_loads_with_plain_peft(tmp_path: Path) -> None:
    """KL <= 1e-6 and the same top-1 words from plain peft and from pefttool's own reload.

    In float32: in bfloat16 two products that round at different places are 1e-3 apart, as each is from the truth.
    """
    import torch

    from pefttool.config import registry
    from pefttool.export.reload import reload
    from pefttool.inference.predictor import inference

    finished = run(tmp_path / "q", "--adapter", "lora", *CHAT, *EXACT, "--quantize", "nf4", "-o", "train.max_steps=2")
    loaded = reload(finished.folder, registry.build())
    ids = loaded.processor("The capital of France is Paris, and the capital of Spain is Madrid. " * 8)["input_ids"][
        :128
    ]
    with inference(loaded.model, loaded.choice):
        own = loaded.model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
    base = finished.json("adapter/pefttool.json")["base"]["path"]
    printed = clean_python(KL, base, str(finished.folder / "adapter"), json.dumps([ids]))
    plain = torch.tensor(json.loads(printed)).reshape(own.shape)
    divergence = (own.exp() * (own - plain)).sum(-1).mean()
    assert abs(float(divergence)) <= 1e-6
    assert float((own.argmax(-1) == plain.argmax(-1)).float().mean()) == 1.0


@pytest.mark.slow
def test_chat_talks(tmp_path: Path) -> None:
    import subprocess
    import sys

    from real_run import ENVIRONMENT

    finished = run(tmp_path / "c", "--adapter", "lora", *CHAT, "-o", "train.max_steps=1")
    talk = subprocess.run(
        [sys.executable, "-m", "pefttool", "chat", str(finished.folder), "-o", "generation.max_new_tokens=5"],
        input="Hello!\nAnd you?\n",
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=True,
    )
    assert len(talk.stdout.splitlines()) == 2
