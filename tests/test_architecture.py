"""The arrows: who may import whom, what shipped code may not contain, and where no file may lie."""

from __future__ import annotations

import ast
import functools
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "pefttool"
PLUGINS = ROOT / "plugins"
KERNELS = ROOT / "kernels"
#: Which folders of the core a folder may import, besides itself. docs/architecture.md draws it.
BELOW = {"api": (), "files": ("api",), "nn": ("api", "files"), "config": ("api", "files")}
BELOW["toolkit"] = (*BELOW["nn"], "nn")
BELOW["models"] = (*BELOW["toolkit"], "toolkit", "config")
BELOW["data"] = ("api", "files", "toolkit", "config")
BELOW["setup"] = (*BELOW["models"], "models", "data")
BELOW["runs"] = BELOW["inference"] = (*BELOW["setup"], "setup")
BELOW["training"] = BELOW["export"] = (*BELOW["runs"], "runs", "inference")
BELOW["forecast"] = (*BELOW["training"], "training")
BELOW["run"] = (*BELOW["forecast"], "forecast")
BELOW["testing"] = (*BELOW["run"], "run", "export")
BELOW["cli"] = (*BELOW["run"], "run", "export")
BELOW["__main__"] = ("cli",)
#: What is neither: the package itself, which re-exports the contract.
ROOT_MODULES = ("__init__", "__main__", "run")
core_files = sorted(CORE.rglob("*.py"))
plugin_files = sorted(PLUGINS.rglob("*.py"))
kernel_files = sorted(KERNELS.rglob("*.py"))
shipped = [*core_files, *plugin_files, *kernel_files]
written = [
    path
    for folder in ("pefttool", "plugins", "kernels", "tests", "examples", "docs", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ".venv" not in path.parts
]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    parts = path.with_suffix("").relative_to(CORE.parent if path.is_relative_to(CORE) else path.parents[1]).parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Every imported module, inside functions and under TYPE_CHECKING too: `from a import b` is `a` and `a.b`."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            argument = node.args[0]
            if isinstance(argument, ast.Constant):
                yield str(argument.value)


def folder_of(module: str) -> str | None:
    """The folder of the core that a module is in (or `run`, `__main__`); None for what is not the core's."""
    core, _, rest = module.partition(".")
    name = rest.split(".")[0]
    return name if core == "pefttool" and name in BELOW else None


def test_imports_are_seen_wherever_they_stand(tmp_path: Path) -> None:
    """The walk itself: an arrow test that overlooks a spelling would prove nothing."""
    path = tmp_path / "pkg" / "mod.py"
    path.parent.mkdir()
    path.write_text(
        "import a.b\nfrom c import d\nif TYPE_CHECKING:\n    import e\n"
        "def f():\n    from pefttool import run as stages\n    import_module('g.h')\n"
        "    from . import i\n    from .j import k\n"
    )
    found = set(imports(path))
    assert {"a.b", "c.d", "e", "pefttool.run", "g.h", "pkg.i", "pkg.j.k"} <= found


def test_there_is_something_to_walk() -> None:
    assert len(core_files) > 100 and len(plugin_files) > 8
    assert {folder_of(module_name(path)) for path in core_files} == {*BELOW, None}


def test_the_core_is_folders_of_a_size_that_can_be_read() -> None:
    modules = {path.stem for path in CORE.glob("*.py")}
    assert modules == set(ROOT_MODULES)
    for folder in sorted({*BELOW} - {*ROOT_MODULES}):
        files = [path for path in (CORE / folder).glob("*.py") if path.name != "__init__.py"]
        assert 5 <= len(files) <= 16, f"{folder} has {len(files)} files: split or merge it by job"


@pytest.mark.parametrize("folder", sorted({*BELOW} - {*ROOT_MODULES, "cli", "testing"}))
def test_a_folder_says_what_it_is_and_imports_nothing(folder: str) -> None:
    """Names that are re-exported here would import torch under `--help`."""
    body = tree(CORE / folder / "__init__.py").body
    assert len(body) == 1 and ast.get_docstring(tree(CORE / folder / "__init__.py"))


@pytest.mark.parametrize("path", core_files, ids=relative)
def test_arrows_run_down(path: Path) -> None:
    own = folder_of(module_name(path))
    if own is None:
        return
    for module in imports(path):
        folder = folder_of(module)
        if folder not in (None, own):
            assert folder in BELOW[own], f"{relative(path)} imports {module}: {own} may use {', '.join(BELOW[own])}"


def test_no_circle_within_the_core() -> None:
    """Imports under TYPE_CHECKING and inside functions count: who reads one file must not have to read all."""
    modules = {module_name(path): path for path in core_files}
    uses = {name: {m for m in imports(path) if m in modules and m != name} for name, path in modules.items()}
    for name, used in uses.items():  # `from pefttool.a import b` is of b where that is a module, not of the folder
        uses[name] = {m for m in used if modules[m].name != "__init__.py"}
    while uses:
        free = {name for name, used in uses.items() if not used}
        assert free, f"a circle among {', '.join(sorted(uses))}"
        uses = {name: used - free for name, used in uses.items() if name not in free}


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))


#: Functions whose parameters somebody else decides: transformers calls its attention functions with these.
GIVEN = {("pefttool/nn/attention.py", "attention")}


@pytest.mark.parametrize("path", [path for path in core_files if path.parent != CORE / "cli"], ids=relative)
def test_values_that_travel_together_travel_as_one(path: Path) -> None:
    for function in functions(path):
        given = function.args
        names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
        names = [name for name in names if name not in ("self", "cls", "ctx")]
        if (relative(path), function.name) not in GIVEN:
            assert len(names) <= 6, f"{relative(path)}: {function.name} takes {', '.join(names)}"


def test_no_two_public_types_of_the_core_share_a_name() -> None:
    found: dict[str, list[str]] = {}
    for path in core_files:
        for node in tree(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(relative(path))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1}


def test_a_run_is_eight_stages_that_can_be_seen_at_once() -> None:
    """`run._run` fits on a screen, and calls them in the order that docs/concepts.md gives."""
    (picture,) = (function for function in functions(CORE / "run.py") if function.name == "_run")
    assert picture.end_lineno is not None and picture.end_lineno - picture.lineno < 40
    calls = sorted((n for n in ast.walk(picture) if isinstance(n, ast.Call)), key=lambda n: (n.lineno, n.col_offset))
    called = [ast.unparse(node.func) for node in calls]
    stages = ["plan.make", "corpus.load", "base.load", "examples.encode"]
    stages += ["attach.attach", "features.settle", "loop.train", "finishing.finish"]
    assert [name for name in called if name in stages] == stages
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    assert "recipe -> " + " -> ".join(stage.partition(".")[0] for stage in stages) in page


@pytest.mark.parametrize("folder", sorted(path.name for path in (ROOT / "tests" / "core").iterdir() if path.is_dir()))
def test_tests_mirror_the_core(folder: str) -> None:
    assert folder in BELOW or folder == "__pycache__"


@pytest.mark.parametrize("path", core_files, ids=relative)
def test_the_core_imports_no_plugin_and_no_kernel(path: Path) -> None:
    assert not [module for module in imports(path) if module.startswith("pefttool_")]


@pytest.mark.parametrize("path", plugin_files, ids=relative)
def test_a_plugin_imports_no_other_plugin(path: Path) -> None:
    own = path.relative_to(PLUGINS).parts[0]
    allowed = (own, "pefttool_kernels")
    assert not [m for m in imports(path) if m.startswith("pefttool_") and m.split(".")[0] not in allowed]


@pytest.mark.parametrize("path", kernel_files or [KERNELS], ids=relative)
def test_kernels_import_neither_core_nor_plugins(path: Path) -> None:
    if not path.is_file():
        pytest.skip("there are no kernels yet")
    roots = {module.split(".")[0] for module in imports(path)}
    assert not {r for r in roots if r == "pefttool" or (r.startswith("pefttool_") and r != "pefttool_kernels")}


@pytest.mark.parametrize("folder", ["plugins", "kernels", "tests", "examples"])
def test_no_package_where_a_folder_would_shadow_one(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


@pytest.mark.parametrize("path", written, ids=relative)
def test_files_stay_small(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{relative(path)} has {lines} lines: split it by job"


#: Where --trust-remote-code goes through: tests/trust/test_shipped_code.py names each use, with its reason.
TRUSTING = ("pefttool/cli/common.py", "pefttool/config/recipe.py", "pefttool/models/pretrained.py")


@pytest.mark.parametrize("path", shipped, ids=relative)
def test_no_pickle_and_no_remote_code(path: Path) -> None:
    assert not {m.split(".")[0] for m in imports(path)} & {
        "pickle",
        "cloudpickle",
        "dill",
        "joblib",
        "shelve",
        "marshal",
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in ("torch.load", "torch.save", "torch.package"), f"line {node.lineno}"
        if relative(path) in TRUSTING:
            continue
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant) and node.value.value is False
        if isinstance(node, ast.Constant):
            assert node.value != "trust_remote_code", f"line {node.lineno}"


def registered_names() -> set[str]:
    """Names that first-party plugins register: the `name = "..."` of their classes."""
    return {
        node.value.value
        for path in plugin_files
        for cls in ast.walk(tree(path))
        if isinstance(cls, ast.ClassDef)
        for node in cls.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "name" and isinstance(node.value.value, str)
    }


@pytest.mark.parametrize("path", core_files, ids=relative)
def test_the_core_names_no_first_party_plugin(path: Path) -> None:
    """As a whole string; sentences for people (docstrings, help, error messages) may give examples."""
    plugins = {folder.name.removeprefix("pefttool_") for folder in PLUGINS.iterdir() if folder.is_dir()}
    # Words that mean something of their own: a device map, a verb, a role, a file type.
    names = (registered_names() | plugins) - {"text", "chat", "report", "examples", "full", "head", "json"}
    names -= {"seq2seq", "vision", "series"}  # kinds of models
    names |= {"lora", "prefix", "nf4", "int8", "text-classification", "causal-lm"}
    found = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Constant) and node.value in names]
    assert not found, [f"line {node.lineno}: {node.value!r}" for node in found]


@pytest.mark.parametrize(
    "path", [p for p in plugin_files if p.name == "__init__.py" and p.parents[1] == PLUGINS], ids=relative
)
def test_a_plugin_module_holds_only_its_version_and_hooks(path: Path) -> None:
    body = tree(path).body
    assert ast.get_docstring(tree(path))
    for node in body[1:]:
        if isinstance(node, ast.Assign):
            assert ast.unparse(node.targets[0]) == "pefttool_api_version"
        elif isinstance(node, ast.FunctionDef):
            assert [ast.unparse(d).partition("(")[0] for d in node.decorator_list] == ["hookimpl"]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            assert (module or "").split(".")[0] in ("pefttool", "collections", "typing", "__future__")
        else:
            assert isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING", ast.unparse(node)


@pytest.mark.parametrize("path", written, ids=relative)
def test_no_note_is_left_behind(path: Path) -> None:
    with path.open("rb") as file:
        comments = [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    assert not [comment for comment in comments if any(word in comment for word in ("TODO", "FIXME", "XXX"))]
