"""The doors: what of pefttool a plugin may import, name by name, and that no plugin imports anything else."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Module -> the names that it keeps for plugins. Whoever takes one away breaks plugins: API_VERSION moves then.
DOORS = {
    "pefttool": """API_VERSION Adapter Arranged Attached Caution DataError DataFormat DataProblem Direction Facts
        KeyValues Loaded Loss ModelError NotMergeable Options PefttoolError PluginError Pretrained Problem Quantizer
        Refused Row RunError Setting Source Task UsageError cache_folder events hookimpl one_line suggest""",
    "pefttool.toolkit.attachment": "claim held_by release",
    "pefttool.toolkit.class_names": "Numbered in_order listed name_of number numbers stands_for_nothing",
    "pefttool.toolkit.columns": "describe find_column missing_column most",
    "pefttool.toolkit.csv_dialect": "Header mark_as_text separator_of",
    "pefttool.toolkit.decoders": "reads_both_ways require",
    "pefttool.toolkit.file_kinds": "start_of",
    "pefttool.toolkit.loader_code": "as_trained base constructor",
    "pefttool.toolkit.model_parts": """check_last_layers last_layer_parameters names_of train_only
        transformers_part""",
    "pefttool.toolkit.peft_folder": """CONFIG HEAD NAME WEIGHTS load load_peft read_tensors save stored_dtypes wrap
        write_tensors""",
    "pefttool.toolkit.peft_targets": "rewritten",
    "pefttool.toolkit.quiet": "quiet_datasets quiet_loading",
    "pefttool.toolkit.random_numbers": "forked",
    "pefttool.toolkit.text_files": "HEAD head is_packed lines shown_suffix suffix",
    "pefttool.toolkit.timestamps": "EXPECTED compact number seconds",
    "pefttool.toolkit.truncation": "tell unended",
    "pefttool.nn.attention": "install packed_mask",
    "pefttool.nn.attention_modules": "find",
    "pefttool.nn.attention_prefix": "NAME",
    "pefttool.nn.embedding_offload": "SlicedLinear device_of",
    "pefttool.nn.parameters": "EXPERTS show",
    "pefttool.testing": """ADAPTER_CHECKS AdapterCase ContractViolation adapter_cases check_adapter check_format
        check_quantizer check_resume check_task installed tiny_decoder tiny_encoder tiny_tokenizer""",
    "pefttool.cli.for_plugins": """DEVICE DTYPE FORMAT JSON TRUST abstract_model choose_device current_registry
        find_model plain_line print_json print_table""",
}
#: Folders whose modules are doors: what a plugin imports of them is a module, or a name of one.
FOLDERS = ("pefttool.toolkit", "pefttool.nn")
PLUGINS = sorted(
    path
    for folder in ("plugins", "examples/third_party_adapter", "examples/third_party_ranks")
    for path in (ROOT / folder).rglob("*.py")
    if ".venv" not in path.parts
)
SNIPPETS = [
    (f"{page.relative_to(ROOT)}:{number}", block)
    for page in sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")})
    if ".venv" not in page.parts
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL), 1
    )
]


def taken(code: str) -> Iterator[tuple[str, str]]:
    """(module, name) of everything that is imported from pefttool, and of what is read off a module of a door."""
    tree = ast.parse(code)
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "pefttool")
        elif isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "pefttool":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if node.module in FOLDERS and whole in DOORS:
                    modules[alias.asname or alias.name] = whole
                else:
                    yield str(node.module), alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            yield modules[node.value.id], node.attr


def outside(code: str) -> list[str]:
    """What of this is behind no door."""
    return sorted({f"{module}: {name}" for module, name in taken(code) if name not in DOORS.get(module, "").split()})


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from pefttool import Adapter, Row", []),
        ("from pefttool import run", ["pefttool: run"]),
        ("import pefttool.run", ["pefttool.run: "]),
        ("from pefttool.api.errors import DataError", ["pefttool.api.errors: DataError"]),
        ("def f():\n    from pefttool.models import hub", ["pefttool.models: hub"]),
        ("from pefttool.toolkit import attachment as a\na.claim(1)", []),
        ("from pefttool.toolkit import attachment as a\na.ATTRIBUTE", ["pefttool.toolkit.attachment: ATTRIBUTE"]),
        ("from pefttool.toolkit.attachment import Claim", ["pefttool.toolkit.attachment: Claim"]),
        ("from pefttool.nn import placement", ["pefttool.nn: placement"]),
    ],
)
def test_what_is_behind_no_door_is_seen(code: str, found: list[str]) -> None:
    assert outside(code) == found


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_plugin_imports_only_through_the_doors(path: Path) -> None:
    assert outside(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("place", "code"), SNIPPETS, ids=[place for place, _ in SNIPPETS])
def test_a_snippet_imports_only_through_the_doors(place: str, code: str) -> None:
    assert outside(code) == []


def test_there_are_plugins_and_snippets() -> None:
    assert len(PLUGINS) > 100 and any(place.startswith("docs/writing-an-adapter.md") for place, _ in SNIPPETS)


@pytest.mark.parametrize("door", DOORS)
def test_a_door_holds_exactly_these_names(door: str) -> None:
    module = import_module(door)
    assert sorted(module.__all__) == sorted(DOORS[door].split())
    assert [name for name in module.__all__ if not hasattr(module, name)] == []


def test_every_helper_is_a_door_and_no_other_folder_has_one() -> None:
    """A module of the toolkit that is for the core alone belongs elsewhere."""
    files = sorted(path for path in (ROOT / "pefttool").rglob("*.py"))
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}
    assert {name for name, path in named.items() if "\n__all__ = " in path.read_text(encoding="utf-8")} == set(DOORS)
    assert {name for name in named if name.startswith("pefttool.toolkit.")} <= set(DOORS)


def test_no_helper_is_there_for_nobody() -> None:
    """The contract and its suite are for strangers, too; the other doors are as narrow as the plugins allow."""
    used = {pair for path in PLUGINS for pair in taken(path.read_text(encoding="utf-8"))}
    narrow = [door for door in DOORS if door.startswith(tuple(f"{folder}." for folder in FOLDERS))]
    assert [(door, name) for door in narrow for name in DOORS[door].split() if (door, name) not in used] == []


def test_plugins_find_the_registry_outside_of_a_command_line() -> None:
    """A source that is asked from Python needs other plugins as much as one that a command asks."""
    from pefttool.cli.for_plugins import current_registry

    assert "lora" in current_registry().adapters


@pytest.mark.parametrize("door", ["pefttool", "pefttool.testing", "pefttool.cli.for_plugins"])
def test_a_door_imports_no_torch(door: str) -> None:
    code = f"import sys, {door}; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
