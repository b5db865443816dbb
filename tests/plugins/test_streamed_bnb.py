"""A base whose blocks are streamed trains like the resident one, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bnb_models import QUANTIZERS, bnb
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from pefttool import ModelError
from pefttool.api.facts import Facts
from pefttool.api.values import Loaded, Setting
from pefttool.config import registry
from pefttool.files.fingerprint import weight_files
from pefttool.files.sectioned_file import PackedFile
from pefttool.models import facts, hub
from pefttool.models.pretrained import LocalPretrained
from pefttool.models.quantization import Quantization
from pefttool.nn.block_streaming import Copies, Mapped, Slots, Views
from pefttool.setup import streamed_base
from pefttool.setup.base import load_model
from pefttool.setup.loading import Loading
from pefttool_kernels import lora
from pefttool_kernels.cross_entropy import linear_cross_entropy

LANES = ("views, one block", "copies, one block", "copies, one ahead", "views, one ahead")
CHECKPOINTING = ("none", "non-reentrant", "reentrant")
STEPS = 3
DEFAULTS = {name: Quantization.default(quantizer) for name, quantizer in QUANTIZERS.items()}


class Decoder:
    """As much of a task as loading asks."""

    name, generative, peft_task_type = "decoder", True, "CAUSAL_LM"

    def load(self, source: LocalPretrained, setting: Setting) -> Loaded:
        return Loaded(source.model(AutoModelForCausalLM), None)

    def unused(self, model: Any) -> tuple[str, ...]:
        return ()

    def left_alone(self, model: Any) -> tuple[str, ...]:
        return ()

    def head_modules(self, model: Any) -> tuple[str, ...]:
        return ()


TASK: Any = Decoder()


def save_llama(folder: Path, tied: bool = False) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        attention_bias=True,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path_factory.getbasetemp() / "streamed-cache"))


def known(folder: Path) -> Facts:
    abstract = TASK.load(LocalPretrained(folder, abstract=True), Setting(None)).model
    return facts.inspect(abstract, TASK, dtype="bfloat16")


def loading(folder: Path, name: str, setting: Setting) -> Loading:
    return Loading(folder, TASK, setting, DEFAULTS[name], known(folder), "cpu", "bfloat16")


def resident(folder: Path, name: str, seed: int = 0) -> Any:
    return load_model(loading(folder, name, Setting(None, seed=seed)))


def streamed(folder: Path, name: str, lane: str = LANES[0], seed: int = 0) -> tuple[Any, Slots]:
    how = loading(folder, name, Setting(None, seed=seed))
    found, slots = streamed_base.load(how, lambda: resident(folder, name, seed))
    slots.ahead = 1 if "ahead" in lane else 0
    file = PackedFile(streamed_base.file_for(how))
    host = Mapped(file, slots.sections)
    copies = lane.startswith("copies")
    slots.lane = Copies(slots.sections, host, torch.device("cpu"), slots.most) if copies else Views(host)
    return found.model, slots


def train(model: Any, checkpointing: str, vocabulary: int, tokens: int = 11, dropout: float = 0.0) -> dict[str, Tensor]:
    """Losses, every gradient of three steps of AdamW, and the weights afterwards; an evaluation before each step."""
    torch.manual_seed(2)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=dropout)
    adapted = get_peft_model(model, config)
    assert len(lora.fuse(adapted)) >= 7 * len(model.model.layers) - 1
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zeros would hide the base's part in the gradient of A
            torch.nn.init.normal_(parameter, std=0.05)
    if checkpointing != "none":
        adapted.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    found = {}
    for step in range(STEPS):
        ids = torch.randint(0, vocabulary, (2, tokens), generator=torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                found[f"{step} logits"] = adapted.eval()(input_ids=ids[:, :5], use_cache=False).logits
            hidden = adapted.train().base_model.model.model(input_ids=ids, use_cache=False).last_hidden_state
            loss = linear_cross_entropy(hidden[:, :-1].flatten(0, 1), model.lm_head.weight, ids[:, 1:].flatten())
        loss.backward()
        found[f"{step} loss"] = loss.detach()
        found |= {f"{step} {n}": p.grad for n, p in trained.items()}
        optimizer.step()
        optimizer.zero_grad()
    return found | {n: p.detach().clone() for n, p in trained.items()}


def different(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(scope="module")
def expected(llama: Path) -> dict[tuple[str, str], dict[str, Tensor]]:
    pairs = [(name, mode) for name in QUANTIZERS for mode in CHECKPOINTING]
    return {(name, mode): train(resident(llama, name).model, mode, 300) for name, mode in pairs}


@pytest.mark.parametrize("mode", CHECKPOINTING)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_outputs_gradients_and_trained_weights_are_equal_bit_by_bit(llama, expected, name, lane, mode):
    model, slots = streamed(llama, name, lane)
    found = train(model, mode, 300)
    assert len(found) == STEPS * (2 + 56) + 56
    assert all(found[f"{STEPS - 1} {n}"].any() for n in found if n.startswith("base_model"))
    assert different(found, expected[name, mode]) == []
    # An evaluation and a training step: three walks over four blocks; of one block held, the last one stays.
    if slots.ahead == 0:
        assert slots.fetched == 4 + 4 + 3 + (STEPS - 1) * (3 + 4 + 3)


def test_with_dropout_where_the_update_is_composed(llama):
    """Under autocast, as runs on a CPU with bfloat16 are: peft's two classes cast differently without it."""
    model, _ = streamed(llama, "nf4")
    theirs = train(resident(llama, "nf4").model, "non-reentrant", 300, dropout=0.2)
    assert different(train(model, "non-reentrant", 300, dropout=0.2), theirs) == []


@pytest.mark.parametrize("mode", CHECKPOINTING)
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.slow
def test_smollm2_too(monkeypatch, lane, mode):
    with monkeypatch.context() as context:
        context.delenv("PEFTTOOL_CACHE")
        folder = hub.resolve("example:smollm2-135m-instruct", registry.build(), weights=True).path
    theirs = train(resident(folder, "nf4").model, mode, 49152, tokens=64)
    found = train(streamed(folder, "nf4", lane)[0], mode, 49152, tokens=64)
    assert len(found) == STEPS * (2 + 420) + 420
    assert different(found, theirs) == []


def test_no_weight_is_saved_for_the_backward_pass(llama):
    model, _ = streamed(llama, "nf4")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    lora.fuse(adapted)
    saved = []

    def pack(tensor):
        saved.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapted(input_ids=torch.arange(9)[None], use_cache=False).logits.sum().backward()
    assert saved and torch.uint8 not in saved


def test_a_streamed_model_holds_no_linear_of_its_blocks(llama):
    model, slots = streamed(llama, "nf4")
    theirs = resident(llama, "nf4").model
    blocks = sum(p.numel() for n, p in model.named_parameters() if "proj.weight" in n)
    assert blocks == 0
    packed = sum(m.weight.numel() for m in theirs.modules() if isinstance(m, bnb.nn.Linear4bit))
    assert sum(section.size for section in slots.sections) > packed > 0
    rest = {n: p for n, p in model.named_parameters() if "proj.weight" not in n}
    others = dict(theirs.named_parameters())
    assert rest and all(torch.equal(parameter, others[name]) for name, parameter in rest.items())


def test_what_is_tied_stays_tied(tmp_path):
    model, _ = streamed(save_llama(tmp_path, tied=True), "nf4")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_file_is_made_once_and_again_when_the_model_changes(monkeypatch, tmp_path):
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "cache"))
    folder = save_llama(tmp_path / "model")
    made = []

    def make():
        made.append(1)
        return resident(folder, "nf4")

    def load():
        return streamed_base.load(loading(folder, "nf4", Setting(None)), make)

    load(), load()
    assert len(made) == 1
    path = streamed_base.file_for(loading(folder, "nf4", Setting(None)))
    path.write_bytes(path.read_bytes()[:-1])
    load()
    assert len(made) == 2
    before = weight_files(folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    model.save_pretrained(folder)
    assert weight_files(folder) != before
    load()
    assert len(made) == 3


def test_another_model_of_the_same_folder_has_a_file_of_its_own(llama):
    """A task may build it otherwise for head-only training, or for other labels."""
    settings = (Setting(None), Setting(None, frozen_backbone=True), Setting(None, labels=("0", "1")))
    files = {streamed_base.file_for(loading(llama, "nf4", setting)) for setting in settings}
    assert len(files) == 3
    again = Setting(None, seed=1, sequence_length=7, packing=True)
    assert streamed_base.file_for(loading(llama, "nf4", again)) in files


def test_random_weights_count_for_their_seed_only(tmp_path):
    """A weight that the folder lacks is drawn by the seed: another seed makes another file."""
    folder = save_llama(tmp_path / "model")
    model = LlamaForCausalLM.from_pretrained(folder)
    state = {n: p for n, p in model.state_dict().items() if n != "model.layers.1.mlp.up_proj.weight"}
    model.save_pretrained(folder, state_dict=state)
    found = {seed: train(streamed(folder, "nf4", seed=seed)[0], "none", 300) for seed in (0, 1)}
    assert different(found[0], found[1])
    for seed in (0, 1):
        assert different(found[seed], train(resident(folder, "nf4", seed).model, "none", 300)) == []


def test_a_full_disk_is_named(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTTOOL_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(streamed_base.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10}))
    with pytest.raises(ModelError, match="10 free: make room, or set PEFTTOOL_CACHE to another disk"):
        streamed(llama, "nf4")
