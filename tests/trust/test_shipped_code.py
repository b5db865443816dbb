"""What ships: no pickle, no code made up while running, no way out, but for what is named here with its reason.

test_packaging.py shows that the wheel holds the packages that are walked here, and nothing else.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = [ROOT / name for name in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
FILES = sorted(p for package in PACKAGES for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts)

#: Modules that unpickle, run text as code, start processes or open connections.
MODULES = re.compile(
    r"(pickle|_pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal|copyreg|code|codeop|runpy|pty|socket|socketserver|ssl"
    r"|subprocess|multiprocessing|requests|httpx|aiohttp|urllib|urllib3|http|ftplib|smtplib|telnetlib|xmlrpc|webbrowser"
    r"|ctypes|cffi)(\.|$)"
)
#: Calls, as they are written.
CALLS = re.compile(
    r"(eval|exec|compile|__import__|input|breakpoint)"
    r"|(torch|pl|paddle)\.(load|save)|(np|numpy)\.(load|fromregex)|(pd|pandas)\.read_pickle|torch\.hub\..*"
    r"|yaml\.(load|full_load|unsafe_load|load_all)|os\.(system|popen|exec\w+|spawn\w+|posix_spawn\w*|fork\w*)"
    r"|.*\.(extract|extractall|unpack_archive|gather_object|all_gather_object|broadcast_object_list|scatter_object_list)"
    r"|(importlib\.)?import_module|importlib\.util\.(module_from_spec|spec_from_file_location)|.*\.exec_module"
    r"|.*\.(load_dataset|load_dataset_builder)|(torch\.)?package\.PackageImporter"
)
#: Keyword arguments, with the values that are harmless.
KEYWORDS = {"allow_pickle": "False", "weights_only": "True", "trust_remote_code": "False", "shell": "False"}
#: Words in any file, code that is written out as text (the loaders of adapters) among them.
WORDS = re.compile(r"torch\.load\(|pickle\.load|read_pickle|\beval\(|\bexec\(|weights_only=False|allow_pickle=True")
METHOD = re.compile(r"\.eval\($")


class Use(NamedTuple):
    file: str
    what: str


ALLOWED: dict[Use, str] = {
    Use("pefttool/config/typed_text.py", "yaml.load"): "BaseLoader: every scalar stays text",
    Use("pefttool/config/yaml_text.py", "yaml.load"): "its loader is a SafeLoader that takes less",
    Use("plugins/pefttool_examples/datasets.py", "yaml.load"): "BaseLoader: every scalar stays text",
    Use("plugins/pefttool_examples/archives.py", "subprocess"): "pip and apt-get, for `pefttool examples fetch` alone",
    Use("pefttool/export/clean_process.py", "subprocess"): "`pefttool check` loads an adapter where pefttool is not",
    Use("pefttool/cli/group.py", "import_module"): "the verbs of a table in the same file",
    Use("plugins/pefttool_examples/verses.py", "importlib.import_module"): "a package that one example needs, by name",
    Use("pefttool/models/hub_client.py", "urllib.parse"): "quotes a revision; it connects nowhere",
    Use("pefttool/setup/allocator.py", "ctypes"): "two settings of the C library's own allocator",
    Use("kernels/pefttool_kernels/cpu/native.py", "ctypes"): "the compiled CPU code that the wheel itself brings",
    Use(
        "pefttool/models/pretrained.py", "trust_remote_code=trusted"
    ): "what --trust-remote-code allows: see remote_code.py",
    Use("pefttool/models/pretrained.py", "trust_remote_code=self.trusted"): "the same",
    Use(
        "pefttool/config/recipe.py", "trust_remote_code=core.trust_remote_code"
    ): "the recipe's key, REPO@REVISION or null",
    Use(
        "pefttool/files/model_folder.py", "torch.load("
    ): "a command that is printed for the user, with weights_only=True",
}


def uses(file: str, tree: ast.Module) -> Iterator[Use]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Use(file, alias.name) for alias in node.names if MODULES.match(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and MODULES.match(node.module):
            yield Use(file, node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if CALLS.fullmatch(name):
                yield Use(file, name)
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg in KEYWORDS and value != KEYWORDS[keyword.arg]:
                    yield Use(file, f"{keyword.arg}={value}")


def words(file: str, text: str) -> Iterator[Use]:
    for found in WORDS.finditer(text):
        if not METHOD.search(text[: found.end()]):  # model.eval()
            yield Use(file, found.group())


def all_uses() -> set[Use]:
    found: set[Use] = set()
    for path in FILES:
        file = path.relative_to(ROOT).as_posix()
        text = path.read_bytes().decode("utf-8", "replace")
        found.update(words(file, text))
        if path.suffix == ".py":
            found.update(uses(file, ast.parse(text)))
    return found


def test_everything_that_ships_is_walked() -> None:
    assert len(FILES) > 200
    assert {path.suffix for path in FILES} <= {".py", ".yaml", ".json", ".typed", ".c", ".h", ".so", ".txt", ".md", ""}


def test_nothing_ships_but_what_is_named() -> None:
    assert sorted(all_uses() - set(ALLOWED)) == []


def test_nothing_is_named_that_does_not_ship() -> None:
    assert sorted(set(ALLOWED) - all_uses()) == []
    assert all(ALLOWED.values())


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch, dill",
        "def f():\n    import subprocess as s",
        "from urllib.request import urlopen",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, Loader=yaml.Loader)",
        "eval(text)",
        "exec(text)",
        "compile(text, 'x', 'exec')",
        "os.system('ls')",
        "tar.extractall(folder)",
        "dist.all_gather_object(a, b)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "f(weights_only=False)",
        "import_module(name)",
        "datasets.load_dataset(path)",
    ],
)
def test_the_walk_has_teeth(code: str) -> None:
    assert [*uses("x.py", ast.parse(code)), *words("x.py", code)]


def test_the_walk_knows_what_is_harmless() -> None:
    code = "model.eval()\nre.compile('x')\nf(weights_only=True)\njson.load(f)\nmodule.compile(dynamic=True)\n"
    assert [*uses("x.py", ast.parse(code)), *words("x.py", code)] == []
