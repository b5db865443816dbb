"""What somebody types, as a row, and whether a task takes such rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pefttool.api.task import Task
from pefttool.api.values import Row

if TYPE_CHECKING:
    pass


def typed(turns: Sequence[Mapping[str, str]]) -> Row:
    """What somebody typed: a chat task reads the conversation, a task that continues text reads the last line."""
    return Row({"messages": list(turns), "text": turns[-1]["content"]})


def talks(task: Task, options: Any) -> bool:
    """Whether `pefttool chat` can be had with it: it generates, and what somebody types is a row that it takes."""
    return task.generative and not task.check_input(typed([{"role": "user", "content": "hello"}]).values, options)


def text_alone(text: str, options: Any) -> Row:
    """A row that is one text, in the column that the task reads texts from: `pefttool predict --text`."""
    return Row({getattr(options, "text_column", None) or "text": text})


def takes_text(task: Task, options: Any) -> bool:
    """Whether `pefttool predict --text` can be had with it: a text alone is a row that it takes."""
    return not task.check_input(text_alone("hello", options).values, options)
