"""Events: the file first, then every observer, and one that fails takes nobody with it."""

import errno
import json
from types import SimpleNamespace

import pytest

from pefttool.api import events
from pefttool.api.errors import RunError
from pefttool.config import emitter
from pefttool.config.emitter import Emitter
from pefttool.files import durable
from pefttool.runs import artefacts


def plugins(**observers):
    listed = [
        (SimpleNamespace(name=name, owner=f"pkg-{name} 1.0"), SimpleNamespace(function=function))
        for name, function in observers.items()
    ]
    return SimpleNamespace(implementations=lambda hook: listed if hook == "on_event" else [])


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_hook_on_event(tmp_path):
    path, seen = tmp_path / "events.jsonl", []

    def observer(event):
        seen.append((type(event).__name__, len(lines(path))))

    emit = Emitter(plugins(watch=observer))
    emit.open(path)
    emit.step = 4
    emit(events.Saved(path="p", what="checkpoint"))
    assert seen == [("Saved", 1)]  # the file already held the line
    (line,) = lines(path)
    assert line.pop("time") > 1e9 and line.pop("monotonic") > 0
    assert line == {"type": "Saved", "step": 4, "path": "p", "what": "checkpoint"}


def test_what_came_before_the_folder_is_not_lost(tmp_path):
    emit = Emitter(plugins())
    emit(events.Notice(text="early"))
    emit.open(tmp_path / "e")
    emit(events.Notice(text="late"))
    assert [line["text"] for line in lines(tmp_path / "e")] == ["early", "late"]


def test_a_failing_observer_is_disabled_and_the_others_go_on(tmp_path):
    seen = []

    def broken(event):
        raise ValueError("oh\nno")

    emit = Emitter(plugins(broken=broken, good=lambda event: seen.append(event)))
    emit.open(tmp_path / "e")
    emit(events.Saved(path="a", what="x"))
    emit(events.Saved(path="b", what="x"))
    assert [type(e).__name__ for e in seen] == ["Saved", "Notice", "Saved"]
    expected = "observer 'broken' (pkg-broken 1.0) failed on Saved: ValueError: oh no; it is disabled"
    assert [line["text"] for line in lines(tmp_path / "e") if line["type"] == "Notice"] == [expected]


def test_an_observer_may_ask_to_stop_once():
    emit = Emitter(plugins(a=lambda event: event.control.stop("first"), b=lambda event: event.control.stop("second")))
    emit(events.Notice(text="x"))
    assert emit.control.reason == "first"


def test_other_ranks_are_silent(tmp_path):
    seen = []
    emit = Emitter(plugins(watch=lambda event: seen.append(event)), rank=1)
    emit.open(tmp_path / "e")
    emit(events.Notice(text="x"))
    assert seen == [] and not (tmp_path / "e").exists()


@pytest.mark.parametrize(
    "kind", [k for k in vars(events).values() if isinstance(k, type) and issubclass(k, events.Event)]
)
def test_every_event_is_json(kind):
    values = {"float": 0.5, "int": 3, "str": "s", "bool": True, "Mapping[str, float]": {"loss": 1.0}}
    given = {
        f: values.get(str(t), ())
        for f, t in kind.__annotations__.items()
        if f not in ("time", "monotonic", "step", "control")
    }
    document = json.loads(emitter.line(kind(**given)))
    assert document["type"] == kind.__name__
    assert {"type", "time", "monotonic", "step"} <= set(document)
    assert "control" not in document


def test_a_full_disk_is_told_once_and_the_observers_go_on(tmp_path):
    seen = []
    emit = Emitter(plugins(watch=lambda event: seen.append(event)))
    emit.open(tmp_path / "e")

    def full(lines):
        raise OSError(errno.ENOSPC, "No space left on device")

    emit._file.close()
    emit._file = SimpleNamespace(write=full, name="e", close=lambda: None)
    emit(events.Saved(path="a", what="x"))
    emit(events.Saved(path="b", what="x"))
    assert sorted(type(e).__name__ for e in seen) == ["Notice", "Saved", "Saved"]
    (notice,) = [e.text for e in seen if isinstance(e, events.Notice)]
    assert notice == "e cannot be written (No space left on device): the run goes on, unrecorded from here"
    emit.close()


def test_metrics_that_cannot_be_written_leave_a_run_to_go_on_with(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(durable, "write", full)
    with pytest.raises(
        RunError, match=r"metrics\.json cannot be written \(No space left.*: make room, then start again with"
    ):
        artefacts.write_metrics(tmp_path, {}, {}, [], {})
    assert not list(tmp_path.iterdir())


def test_a_number_that_is_not_finite_is_null(tmp_path):
    emit = Emitter(plugins())
    emit.open(tmp_path / "e")
    emit(
        events.Evaluated(
            metrics={"loss": float("nan"), "r2": float("-inf"), "accuracy": 0.5}, primary="loss", best=True
        )
    )
    text = (tmp_path / "e").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text)["metrics"] == {"loss": None, "r2": None, "accuracy": 0.5}
