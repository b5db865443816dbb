"""Checkpoints: the whole state comes back, and what is damaged or unfinished is never taken for one."""

import hashlib
import json
import random
from dataclasses import replace

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pefttool.api.errors import RunError
from pefttool.data.batches import Position
from pefttool.files import state_tree
from pefttool.runs import checkpoint
from pefttool.runs.progress import Best, Extras, Restorable, TrainingProgress


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
    def live(self):
        return Restorable(dict(self.model.named_parameters()), self.optimizer, self.scheduler, self.scaler)


def saved(folder, steps=3):
    training = Training()
    for _ in range(steps):
        training.step()
    path = checkpoint.save(folder, TrainingProgress(steps, Position(1, 2), Best(2, 0.5, 1)), training.live)
    return training, path


def test_training_goes_on_bit_for_bit(tmp_path):
    whole, path = saved(tmp_path)
    for _ in range(4):
        whole.step()
    resumed = Training(seed=9)
    progress, _ = checkpoint.load(path, resumed.live)
    assert progress == TrainingProgress(3, Position(1, 2), Best(2, 0.5, 1))
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


FILES = ["parameters.safetensors", "state.safetensors", "state.json", "manifest.json", "COMPLETE"]


def test_these_are_all_its_files(tmp_path):
    _, path = saved(tmp_path)
    assert sorted(f.name for f in path.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_byte_is_found_and_the_older_one_taken(tmp_path, name):
    _, older = saved(tmp_path, steps=2)
    _, newer = saved(tmp_path, steps=5)
    whole = (newer / name).read_bytes()
    for at in {0, len(whole) // 3, len(whole) // 2, len(whole) - 1, *range(0, len(whole), 97)}:
        data = bytearray(whole)
        data[at] ^= 1 << at % 8
        (newer / name).write_bytes(data)
        path, skipped = checkpoint.newest(tmp_path)
        assert path == older, at
        assert len(skipped) == 1 and "step-5" in skipped[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_or_lost_is_found(tmp_path, name):
    _, older = saved(tmp_path, steps=2)
    _, newer = saved(tmp_path, steps=5)
    whole = (newer / name).read_bytes()
    for length in {0, 1, len(whole) // 2, len(whole) - 1}:
        (newer / name).write_bytes(whole[:length])
        assert checkpoint.newest(tmp_path)[0] == older, length
    (newer / name).unlink()
    path, skipped = checkpoint.newest(tmp_path)
    assert path == older and len(skipped) == 1


def test_a_manifest_names_files_of_its_own_folder_only(tmp_path):
    _, path = saved(tmp_path)
    (tmp_path / "secret").write_text("x")
    manifest = json.dumps({"../secret": hashlib.sha256(b"x").hexdigest()})
    (path / "manifest.json").write_text(manifest)
    (path / "COMPLETE").write_text(hashlib.sha256(manifest.encode()).hexdigest())
    with pytest.raises(RunError, match=r"manifest\.json names '\.\./secret', expected a file of this folder"):
        checkpoint.verify(path)


def test_the_one_of_this_step_is_written_once_and_a_damaged_one_anew(tmp_path):
    training, path = saved(tmp_path)
    before = (path / "state.json").stat().st_mtime_ns
    progress = TrainingProgress(3, Position(1, 2), Best(2, 0.5, 1))
    assert checkpoint.save(tmp_path, progress, training.live) == path
    assert (path / "state.json").stat().st_mtime_ns == before
    (path / "state.json").write_text("{}")
    checkpoint.save(tmp_path, progress, training.live)
    checkpoint.verify(path)


def test_the_oldest_go(tmp_path):
    for steps in (9, 10, 11):
        saved(tmp_path, steps=steps)
    checkpoint.prune(tmp_path, 2, newest=11)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-10", "step-11"]


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("harm", ["not marked", "damaged"])
def test_what_was_passed_over_never_crowds_out_what_is_whole(tmp_path, keep, harm):
    """A run that went on from step 4, below two that are of no use, and has just written step 6."""
    for steps in (4, 8, 9, 6):
        _, path = saved(tmp_path, steps=steps)
        if steps > 6:
            name = "COMPLETE" if harm == "not marked" else "parameters.safetensors"
            (path / name).unlink()
    checkpoint.prune(tmp_path, keep, newest=6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-4", "step-6"][-keep:]
    assert checkpoint.newest(tmp_path) == (tmp_path / "step-6", ())


def test_what_was_never_whole_does_not_count(tmp_path):
    for steps in (4, 5, 6):
        _, path = saved(tmp_path, steps=steps)
        if steps == 5:
            (path / "COMPLETE").unlink()
    checkpoint.prune(tmp_path, 2, newest=6)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-4", "step-6"]


def test_every_generator_goes_on_where_it_was(tmp_path):
    def draw():
        return torch.rand(3).tolist(), random.random(), numpy.random.rand(3).tolist(), numpy.random.randn()

    draw()
    training, path = saved(tmp_path)
    expected = draw()
    draw()
    checkpoint.load(path, training.live)
    assert draw() == expected


def test_what_lies_beside_comes_back(tmp_path):
    training = Training()
    beside = Extras(
        best={"w": torch.arange(3)},
        buffers={"mean": torch.ones(2, dtype=torch.bfloat16), "seen": torch.tensor(4)},
        adapter={"ranks": [torch.tensor([1.5]), {"a": 1, "b": None}]},
        identity={"data": "x", "packages": {"torch": "2"}},
    )
    progress = TrainingProgress(7, Position(2, 0), Best(5, 0.25, 2), False, {"loss": 0.1}, 2, 3)
    path = checkpoint.save(tmp_path, progress, training.live, beside)
    found, back = checkpoint.load(path, training.live)
    assert found == progress
    assert back.best["w"].equal(beside.best["w"]) and back.buffers["mean"].dtype == torch.bfloat16
    assert back.buffers["seen"].equal(torch.tensor(4)) and back.buffers["seen"].shape == ()
    assert back.adapter["ranks"][0].equal(torch.tensor([1.5])) and back.adapter["ranks"][1] == {"a": 1, "b": None}
    assert back.identity == beside.identity == checkpoint.read(path)["identity"]


def test_an_unmarked_folder_is_no_checkpoint(tmp_path):
    _, path = saved(tmp_path)
    (path / "COMPLETE").unlink()
    assert checkpoint.newest(tmp_path)[0] is None
    with pytest.raises(RunError, match="not complete"):
        checkpoint.load(path, Training().live)


def test_other_parameters_are_refused(tmp_path):
    _, path = saved(tmp_path)
    live = Training().live
    with pytest.raises(RunError, match="other parameters"):
        checkpoint.load(path, replace(live, parameters={"x": next(iter(live.parameters.values()))}))
    narrower = {name: parameter[..., :1] for name, parameter in live.parameters.items()}
    with pytest.raises(RunError, match="other parameters"):
        checkpoint.load(path, replace(live, parameters=narrower))


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
    tensors, skeleton = state_tree.flatten(state)
    back = state_tree.unflatten(json.loads(json.dumps(skeleton)), tensors)

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
        state_tree.flatten({"f": len})
