"""Keep libraries from talking to the user about things that the user cannot use."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

__all__ = ["quiet_datasets", "quiet_loading"]

#: On import bitsandbytes tries an optional package for CPU kernels and warns when it is not there.
CHATTY = ("bitsandbytes.backends.cpu.ops",)


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Drop what `CHATTY` loggers say below ERROR while peft, transformers or bitsandbytes are imported.

    The filter goes when the context ends: later messages of the same loggers are shown as usual.
    """
    loggers = [logging.getLogger(name) for name in CHATTY]
    for logger in loggers:
        logger.addFilter(_errors_only)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(_errors_only)


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Drop what the `datasets` library logs of a file that it cannot read: it raises, too, and that is told."""
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _errors_only(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep transformers' table of missing keys and progress bars off the terminal: new heads are no surprise here."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
