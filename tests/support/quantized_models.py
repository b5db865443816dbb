"""What tests of quantizers' options share: the quantised layers of a model, and JSON files that are changed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from pefttool_kernels.modules import FusedLinear4bit, FusedLinear8bit

FLAT = {"name": "nf4", "double_quant": False}


def quantised(model: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if isinstance(m, FusedLinear4bit | FusedLinear8bit)}


def rewritten(path: Path, **changes: Any) -> None:
    """The JSON file with these keys changed; a key that is `...` is removed."""
    document = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))
