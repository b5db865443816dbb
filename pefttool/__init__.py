"""pefttool: parameter-efficient fine-tuning where an adapter is a pip package.

This is the contract: what an adapter, a task, a quantizer, a format, a source or an observer implements, is given and
hands back. Five doors are open to plugins, and no other module of pefttool: this one, the helpers of
`pefttool.toolkit`, a few modules of `pefttool.nn`, `pefttool.cli.for_plugins` for commands, and the contract suite
`pefttool.testing`. What a door holds is its `__all__`; docs/contract.md lists it. Importing this imports no torch.
"""

from pefttool.api import events
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
    one_line,
    suggest,
)
from pefttool.api.facts import Facts, KeyValues
from pefttool.api.hookspecs import API_VERSION, hookimpl
from pefttool.api.options import Options
from pefttool.api.pretrained import Pretrained
from pefttool.api.quantizer import Quantizer
from pefttool.api.task import Direction, Task
from pefttool.api.values import Arranged, Attached, Caution, DataProblem, Loaded, Loss, Problem, Row, Setting
from pefttool.files.cache_folder import cache_folder

__version__ = "0.1.0"
__all__ = [
    "API_VERSION",
    "Adapter",
    "Arranged",
    "Attached",
    "Caution",
    "DataError",
    "DataFormat",
    "DataProblem",
    "Direction",
    "Facts",
    "KeyValues",
    "Loaded",
    "Loss",
    "ModelError",
    "NotMergeable",
    "Options",
    "PefttoolError",
    "PluginError",
    "Pretrained",
    "Problem",
    "Quantizer",
    "Refused",
    "Row",
    "RunError",
    "Setting",
    "Source",
    "Task",
    "UsageError",
    "cache_folder",
    "events",
    "hookimpl",
    "one_line",
    "suggest",
]
