"""Checkpoints: the whole state comes back, and what is damaged or unfinished is never taken for one."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pefttool import checkpoint
from pefttool.batches import Position
from pefttool.checkpoint import Best, Progress
from pefttool.errors import RunError


class Training:
    def __init__(self, seed=0):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda s: 1 / (1 + s))
        self.scaler = torch.amp.GradScaler("cpu", enabled=True)

    def step(self):
        loss = self.model(torch.randn(5, 3)).square().sum()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad()

    @property
    def parts(self):
        return dict(self.model.named_parameters()), self.optimizer, self.scheduler, self.scaler


def saved(folder, steps=3):
    training = Training()
    for _ in range(steps):
        training.step()
    path = checkpoint.save(folder, Progress(steps, Position(1, 2), Best(2, 0.5, 1)), *training.parts)
    return training, path


def test_training_goes_on_bit_for_bit(tmp_path):
    whole, path = saved(tmp_path)
    for _ in range(4):
        whole.step()
    resumed = Training(seed=9)
    progress = checkpoint.load(path, *resumed.parts)
    assert progress == Progress(3, Position(1, 2), Best(2, 0.5, 1))
    for _ in range(4):
        resumed.step()
    for (name, a), b in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert resumed.scaler.state_dict() == whole.scaler.state_dict()
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_nothing_in_a_checkpoint_is_pickle(tmp_path):
    _, path = saved(tmp_path)
    assert {f.suffix for f in path.iterdir()} == {".safetensors", ".json", ""}
    assert [f.name for f in tmp_path.iterdir()] == ["step-3"]


@pytest.mark.parametrize("name", ["parameters.safetensors", "state.safetensors", "state.json", "manifest.json"])
def test_a_flipped_byte_is_found_and_the_older_one_taken(tmp_path, name):
    _, older = saved(tmp_path, steps=2)
    _, newer = saved(tmp_path, steps=5)
    data = bytearray((newer / name).read_bytes())
    data[len(data) // 2] ^= 1
    (newer / name).write_bytes(data)
    path, skipped = checkpoint.newest(tmp_path)
    assert path == older
    assert len(skipped) == 1 and "step-5" in skipped[0]


def test_an_unmarked_folder_is_no_checkpoint(tmp_path):
    _, path = saved(tmp_path)
    (path / "COMPLETE").unlink()
    assert checkpoint.newest(tmp_path)[0] is None
    with pytest.raises(RunError, match="not complete"):
        checkpoint.load(path, *Training().parts)


def test_other_parameters_are_refused(tmp_path):
    _, path = saved(tmp_path)
    parameters, *rest = Training().parts
    with pytest.raises(RunError, match="other parameters"):
        checkpoint.load(path, {"x": next(iter(parameters.values()))}, *rest)


STATES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.builds(lambda n: torch.arange(n), st.integers(0, 5)),
    lambda inner: st.lists(inner) | st.dictionaries(st.integers() | st.text(), inner),
    max_leaves=12,
)


@given(STATES)
def test_any_nested_state_survives_json(state):
    tensors, skeleton = checkpoint.flatten(state)
    back = checkpoint.unflatten(json.loads(json.dumps(skeleton)), tensors)

    def same(a, b):
        if isinstance(a, torch.Tensor):
            return torch.equal(a, b)
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a == b and type(a) is type(b)

    assert same(state, back)


def test_what_would_need_pickle_is_refused():
    with pytest.raises(RunError, match="without pickle"):
        checkpoint.flatten({"f": len})
