"""pefttool: parameter-efficient fine-tuning where an adapter is a pip package.

Plugin authors need only this module: `from pefttool import Adapter, Attached, Options, hookimpl`.
Importing it imports no torch.
"""

from pefttool.api.adapter import Adapter
from pefttool.api.data import DataFormat, Source
from pefttool.api.errors import (
    DataError,
    ModelError,
    NotMergeable,
    PefttoolError,
    PluginError,
    Refused,
    RunError,
    UsageError,
)
from pefttool.api.facts import Facts
from pefttool.api.hookspecs import API_VERSION, hookimpl
from pefttool.api.options import Options
from pefttool.api.quantizer import Quantizer
from pefttool.api.task import Task
from pefttool.api.values import Arranged, Attached, Loaded, Loss, Problem, Row, Setting

__version__ = "0.1.0"
__all__ = [
    "API_VERSION",
    "Adapter",
    "Arranged",
    "Attached",
    "DataError",
    "DataFormat",
    "Facts",
    "Loaded",
    "Loss",
    "ModelError",
    "NotMergeable",
    "Options",
    "PefttoolError",
    "PluginError",
    "Problem",
    "Quantizer",
    "Refused",
    "Row",
    "RunError",
    "Setting",
    "Source",
    "Task",
    "UsageError",
    "hookimpl",
]
