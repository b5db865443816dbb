"""Keep libraries from talking to the user about things that the user cannot use."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

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
