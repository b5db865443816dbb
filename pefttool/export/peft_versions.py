"""Which versions of peft take an adapter's adapter_config.json: what they do with fields that they do not know.

Read from the sources of peft 0.8.2 to 0.21.0 (its config classes for LoRA and prefix tuning).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from pefttool.api.errors import ModelError

#: The first version that passes over fields it does not know (with a warning); earlier ones raise TypeError, and every
#: file has all fields of the version that wrote it.
LENIENT = "0.14.0"
#: Fields and the version that brought them: where one is set, an earlier version would compute something else.
SINCE = {
    "alora_invocation_tokens": "0.18.0",
    "arrow_config": "0.18.0",
    "corda_config": "0.15.0",
    "ensure_weight_tying": "0.18.0",
    "eva_config": "0.14.0",
    "exclude_modules": "0.14.0",
    "init_weights": "0.19.0",
    "kasa_config": "0.21.0",
    "lora_bias": "0.14.0",
    "lora_ga_config": "0.19.0",
    "monteclora_config": "0.20.0",
    "qalora_group_size": "0.16.0",
    "target_parameters": "0.17.0",
    "trainable_token_indices": "0.15.0",
    "use_bdlora": "0.19.0",
    "use_qalora": "0.16.0",
    "velora_config": "0.20.0",
}


def unknown(config: Mapping[str, Any]) -> list[str]:
    """Fields that the installed peft's class for this method does not have: it would pass over them."""
    return sorted(set(config) - set(_defaults(config)))


def first(config: Mapping[str, Any]) -> str:
    """The first version of peft that loads a config with these values as what they are."""
    usual = _defaults(config)
    needed = [SINCE[name] for name, value in config.items() if name in SINCE and value != usual.get(name)]
    return max([LENIENT, *needed], key=lambda text: [int(part) for part in text.split(".")])


def _defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the installed peft's class for this method, with the values that it gives them."""
    from pefttool.toolkit.peft_folder import load_peft

    classes = load_peft().mapping.PEFT_TYPE_TO_CONFIG_MAPPING
    kind = config["peft_type"]
    if kind not in classes:
        raise ModelError(f"adapter_config.json: peft {installed()} does not know peft_type {kind!r}")
    # From the class: some (AdaLoRA's) cannot be made without arguments. What no file has is left out.
    fields = [field for field in dataclasses.fields(classes[kind]) if field.name != "runtime_config"]
    made = {field.name: field.default_factory for field in fields if callable(field.default_factory)}
    return {field.name: made[field.name]() if field.name in made else field.default for field in fields}


def installed() -> str:
    return version("peft")


def tested() -> str:
    """The range of peft versions that this pefttool states, such as `<0.22,>=0.21`."""
    try:
        stated = requires("pefttool") or []
    except PackageNotFoundError:
        stated = []
    found = next((match[1] for text in stated if (match := re.match(r"peft\s*\(?([<>=!~][^;)]*)", text))), "")
    return found.strip() or installed()
