"""Steps that teach nothing: not finite, without a trained token, a gradient or a rate; stopped at, or left out."""

import math

import pytest
import torch
from line_loop import Line, Whole, fit

from pefttool.api import events
from pefttool.api.errors import RunError
from pefttool.api.values import Loss, Row
from pefttool.config.settings import TrainSettings
from pefttool.data.batches import Batches

NAN, GOOD = float("nan"), [Row({"x": i / 7, "y": 2 * i / 7 + 1, "n": 1}, "rows.jsonl", i + 1) for i in range(7)]
BAD = Row({"x": NAN, "y": 1, "n": 1}, "rows.jsonl", 8)


def test_a_step_that_is_not_finite_is_named_with_its_rows(tmp_path):
    with pytest.raises(
        RunError, match=r"step \d: the loss is not finite .* with .*rows\.jsonl:8.*: mend the rows, .*skip"
    ):
        fit(tmp_path, rows=[*GOOD, BAD], rehearse=False)
    with pytest.raises(
        RunError, match=r"not finite \(loss nan, .*\) with rows\.jsonl:8: mend"
    ):  # accumulated: its part
        fit(tmp_path, rows=[*GOOD, BAD], rehearse=False, batch_size=1, gradient_accumulation=4)


def test_such_steps_can_be_left_out(tmp_path):
    """As if there were none: the steps between them are those of a run without, to the bit."""
    run = fit(
        tmp_path, rows=[*GOOD, BAD], non_finite="skip", epochs=2, batch_size=1, scheduler="constant", keep_best=False
    )
    told = [e for e in run.emit.of(events.Notice) if "left out" in e.text and e.text.startswith("step")]
    assert [e.level for e in told] == ["warning"] * 2 and all("rows.jsonl:8" in e.text for e in told)
    assert all(torch.isfinite(p).all() for p in run.model.parameters())
    losses = [e.loss for e in run.emit.of(events.StepDone)]
    assert len(losses) == 16 and sum(math.isnan(loss) for loss in losses) == 2
    left_out = {e.step for e in told}
    order = Batches((1,) * 8, 1, 1, 0).steps()
    parameter = torch.nn.Linear(1, 1)
    torch.manual_seed(0)
    parameter.reset_parameters()
    optimizer = torch.optim.AdamW(parameter.parameters(), lr=0.05, weight_decay=0.0, fused=True)
    for step in range(1, 17):
        _, [[i]] = next(order)
        if step not in left_out:
            values = GOOD[i].values
            loss = (parameter(torch.tensor([[values["x"]]])) - values["y"]).pow(2).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(parameter.weight, run.model.weight) and torch.equal(parameter.bias, run.model.bias)


def test_too_many_of_them_in_a_row_stop_the_run(tmp_path):
    with pytest.raises(RunError, match=r"step 4: the loss is not finite .*, as in the 3 steps before: lower"):
        fit(tmp_path, rows=[BAD], non_finite="skip", epochs=9)


def test_statistics_of_a_step_that_is_left_out_are_put_back():
    from pefttool.training.non_finite import NonFinite
    from pefttool.training.optimisation import StepResult

    norm, told = torch.nn.BatchNorm1d(2), []
    policy = NonFinite(norm.train(), [BAD], TrainSettings(non_finite="skip"), 0, told.append)
    before = norm.running_mean.clone()
    policy.begin()
    norm(torch.full((4, 2), NAN))
    assert norm.running_mean.isnan().all()
    policy.judge(StepResult(NAN, NAN, 1.0, skipped=True, culprit=0), "step 1", [[0]], 1, False)
    assert torch.equal(norm.running_mean, before) and norm.num_batches_tracked == 0 and "rows.jsonl:8" in told[0]


def test_scaled_gradients_may_overflow_and_losses_may_not():
    from pefttool.training.non_finite import MOST_SCALED_STEPS, NonFinite
    from pefttool.training.optimisation import StepResult

    told = []
    policy = NonFinite(torch.nn.Linear(1, 1), [BAD], TrainSettings(), 0, told.append)
    overflow = StepResult(1.0, math.inf, 1.0, skipped=True)
    for _ in range(MOST_SCALED_STEPS):
        policy.judge(overflow, "step 1", [[0]], 1, True)
    with pytest.raises(RunError, match="21 steps in a row had gradients that are not finite"):
        policy.judge(overflow, "step 21", [[0]], 1, True)
    with pytest.raises(RunError, match="the loss is not finite"):
        policy.judge(StepResult(math.inf, math.inf, 1.0, skipped=True, culprit=0), "step 1", [[0]], 1, True)
    assert told == []


def test_a_step_without_a_trained_token_stops_the_run(tmp_path, monkeypatch):
    """Its rows announced some."""
    nothing = lambda self, model, batch, setting: Loss(0 * model(batch["x"][:, None]).sum(), torch.tensor(0))  # noqa: E731
    monkeypatch.setattr(Line, "loss", nothing)
    with pytest.raises(
        RunError, match=r"step 1: no token or label of this step is trained, and .* were announced: task 'line'"
    ):
        fit(tmp_path, rehearse=False)


def test_a_loss_without_a_gradient_stops_the_run(tmp_path, monkeypatch):
    loss = Line.loss

    def cut_off(self, model, batch, setting):
        found = loss(self, model, batch, setting)
        return Loss(found.sum.detach(), found.weight)

    monkeypatch.setattr(Line, "loss", cut_off)
    with pytest.raises(RunError, match="step 1: the loss of task 'line' does not depend on anything that trains"):
        fit(tmp_path, rehearse=False)


@pytest.mark.parametrize(("warmup", "steps"), [(1, 1), (0.9, 1), (5, 1)])
def test_a_learning_rate_of_zero_all_along_stops_the_run(tmp_path, warmup, steps):
    with pytest.raises(RunError, match=r"the learning rate is 0 in all 1 steps: train\.warmup=\S+ leaves none"):
        fit(tmp_path, warmup=warmup, max_steps=steps)
    assert fit(tmp_path, warmup=warmup, max_steps=2).result.steps == 2


def test_an_adapter_without_a_rate_stops_the_run(tmp_path, monkeypatch):
    groups = lambda self, model, trainable, rate: [{"params": list(model.parameters()), "lr": 0.0}]  # noqa: E731
    monkeypatch.setattr(Whole, "param_groups", groups)
    with pytest.raises(RunError, match=r"gives all its parameters a learning rate of 0"):
        fit(tmp_path)
