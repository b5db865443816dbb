"""What BitFit promises beyond the contract: which biases it trains, and that it says so where there are none."""

import pytest
import torch
from pefttool_bitfit import BitFit, BitFitOptions

from pefttool import Facts, UsageError

FACTS = Facts("Tiny", linear_modules=("attention.query", "attention_output"), attention_modules=("attention",))


def tiny(bias):
    attention = torch.nn.ModuleDict({"query": torch.nn.Linear(3, 5, bias=bias)})
    return torch.nn.ModuleDict({"attention": attention, "attention_output": torch.nn.Linear(5, 2, bias=bias)})


@pytest.mark.parametrize(
    ("which", "trained"),
    [("all", {"attention.query.bitfit", "attention_output.bitfit"}), ("attention", {"attention.query.bitfit"})],
)
def test_which_biases_train(which, trained):
    model = tiny(bias=True)
    attached = BitFit().attach(model, BitFitOptions(which=which), FACTS)
    assert attached.trainable == trained
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trained


def test_a_model_without_biases_is_refused_whatever_its_name():
    with pytest.raises(UsageError, match=r"'bitfit' trains the biases .* Tiny has none"):
        BitFit().attach(tiny(bias=False), BitFitOptions(), FACTS)
