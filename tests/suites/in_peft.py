"""For peft's own tests: after every injection of LoRA, its layers add their update inside our product."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import pytest

PARTS, COUNTS = os.environ["PEFTTOOL_SUITE_PARTS"], os.environ["PEFTTOOL_SUITE_COUNTS"]


def without_diffusers() -> None:
    """The tests' common module imports one class of it, for tests that are not chosen."""
    try:
        import diffusers
    except ImportError:
        module: Any = ModuleType("diffusers")
        module.StableDiffusionPipeline = object
        sys.modules["diffusers"] = module


def counted(name: str, function: Any) -> Any:
    def call(*arguments: Any, **options: Any) -> Any:
        with open(COUNTS, "a", encoding="utf-8") as stream:
            stream.write(f"{name}\n")
        return function(*arguments, **options)

    return call


def fuse_every_injection() -> None:
    from peft.tuners.lora import LoraModel

    from pefttool_kernels import linear, lora

    inject = LoraModel.inject_adapter

    def injected(self: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        result = inject(self, model, *arguments, **options)
        lora.fuse(model)
        return result

    LoraModel.inject_adapter = injected
    linear.product = counted("linear.product", linear.product)


def pytest_configure(config: pytest.Config) -> None:
    without_diffusers()
    if PARTS == "ours":
        fuse_every_injection()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without those that are parametrised by other adapters' configurations than LoRA's."""
    from peft import LoraConfig, PeftConfig

    def other(item: Any) -> bool:
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        kinds = [value for value in given if isinstance(value, type) and issubclass(value, PeftConfig)]
        return bool(kinds) and LoraConfig not in kinds

    left_out = [item for item in items if other(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not other(item)]
