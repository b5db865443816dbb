"""What parameters are, and what is said of those that stay in 16 bits."""

from __future__ import annotations

from pefttool.nn import parameters


def test_every_parameter_is_of_one_kind() -> None:
    from torch import nn

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.bias = nn.Parameter(nn.init.zeros_(nn.Linear(12, 2).weight).view(2, 3, 4)), None

    model = nn.Module()
    model.embed, model.conv, model.norm = nn.Embedding(5, 4), nn.Conv1d(4, 4, 2), nn.LayerNorm(4)
    model.layer, model.mixture, model.lm_head = nn.Linear(4, 3), Experts(), nn.Linear(4, 5, bias=False)
    counts = parameters.count(model, parameters.kinds(model, ("layer",), ("lm_head",)))
    assert counts == {
        parameters.EMBEDDINGS: 20,
        parameters.CONVOLUTIONS: 36,
        parameters.OTHERS: 8 + 3,
        parameters.LINEAR: 12,
        parameters.EXPERTS: 24,
        parameters.OUTPUT: 20,
    }
    assert sum(counts.values()) == sum(parameter.numel() for parameter in model.parameters())


def test_it_is_said_where_much_stays_in_16_bits() -> None:
    counts = {parameters.LINEAR: 1_500_000_000, parameters.EXPERTS: 28_700_000_000, parameters.EMBEDDINGS: 300_000_000}
    said = parameters.unreached(counts, 1_500_000_000, "nf4", "bfloat16")
    assert said is not None and said.startswith("29.0 of 30.5 billion parameters stay in bfloat16")
    assert said.endswith("expert tensors (94%)")
    assert parameters.unreached({parameters.LINEAR: 80, parameters.EMBEDDINGS: 20}, 80, "nf4", "bfloat16") is None
    some = parameters.unreached({parameters.LINEAR: 80, parameters.EMBEDDINGS: 20}, 60, "nf4", "bfloat16")
    assert some is not None and "40 of 100" in some and some.endswith("linear layers (20%), embeddings (20%)")
