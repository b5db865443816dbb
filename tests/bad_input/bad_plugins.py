"""Packages that are broken plugins: they are warned about, or named where they are needed; the rest works."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from bad_entry import Entry

API = "pefttool_api_version = 2\n"
HOOK = "from pefttool import Adapter, Options, Task, hookimpl\n" + API
FAKE = """
class Fake(Adapter):
    '''An adapter that does nothing.'''
    name = "fake"
    def attach(self, model, options, facts): ...
    def save(self, model, folder): ...
    def load(self, model, folder): ...
"""
#: Where the entries' packages lie, in their folders.
SITES = "sites"


def install(
    folder: Path, distribution: str, code: str, plugin: str = "acme", points: str | bytes | None = None
) -> None:
    """A distribution as pip would install it, into a folder of its own below `folder / SITES`."""
    module = "bad_" + hashlib.sha256(f"{folder}{distribution}{code}".encode()).hexdigest()[:16]
    site = folder / SITES / distribution
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    content = f"[pefttool]\n{plugin} = {module}\n" if points is None else points
    (info / "entry_points.txt").write_bytes(content if isinstance(content, bytes) else content.encode())
    (site / f"{module}.py").write_text(code)


def sites(folder: Path) -> list[Path]:
    """What has to be on sys.path for what was installed."""
    return sorted((folder / SITES).iterdir())


def plugin(name: str, code: str, *words: str, verb: tuple[str, ...] = ("plugins",), real: bool = False) -> Entry:
    """A plugin `acme` of this code; the answer names it, its package and the way out."""

    def make(folder: Path) -> list[str]:
        install(folder, "acme-tools", code)
        return list(verb)

    warned = verb == ("plugins",)
    named = ("acme", "acme-tools 1.0") if warned else ()
    return Entry(f"plugin/{name}", make, (*named, *words), real, (0,) if warned else (1, 2), warned, plugins="acme")


def registers(name: str, items: str, *words: str, real: bool = False) -> Entry:
    """A plugin that registers these adapters."""
    code = f"{HOOK}{FAKE}@hookimpl\ndef register_adapters():\n    return {items}\n"
    return plugin(name, code, *words, real=real)


def two(name: str, one: str, other: str, plugins: tuple[str, str], *words: str, verb: tuple[str, ...]) -> Entry:
    def make(folder: Path) -> list[str]:
        install(folder, "acme-one", one, plugins[0])
        install(folder, "acme-two", other, plugins[1])
        return list(verb)

    warned = verb == ("plugins",)
    return Entry(f"plugin/{name}", make, words, False, (0,) if warned else (1, 2), warned, ",".join(set(plugins)))


def _loading() -> Iterator[Entry]:
    out = ("--without acme", "uninstall acme-tools")
    yield plugin("an import that fails", "import no_module_of_that_name", "ModuleNotFoundError", *out, real=True)
    yield plugin("an error at import", "raise ValueError('two\\nlines')", "ValueError: two lines", *out)
    yield plugin("an exit at import", "import sys\nsys.exit('bye')", "SystemExit: bye", *out)
    yield plugin("no Python", "def broken(:\n", "SyntaxError", *out)
    yield plugin("zeros", "\0\0\0", "null bytes", *out)
    yield plugin("a loop of imports", "def f():\n    f()\nf()\n", "RecursionError", *out)
    yield plugin("no API version", "x = 1\n", "states no API version", "pefttool_api_version = 2", *out, real=True)
    yield plugin("an older API", "pefttool_api_version = 1\n", "API version 1", "pefttool_api_version = 2", *out)
    newer = ("API version 3", "pefttool_api_version = 2", "--without acme", "update pefttool")
    yield plugin("a newer API", "pefttool_api_version = 3\n", *newer)
    yield plugin("an API in words", "pefttool_api_version = 'one'\n", "API version 'one'", *out)
    yield plugin("an unknown hook", HOOK + "@hookimpl\ndef register_adapter(): ...\n", "'register_adapters'", *out)
    yield plugin("an unmarked hook", HOOK + "def register_tasks(): ...\n", "put @pefttool.hookimpl above it", *out)
    yield plugin("an unknown argument", HOOK + "@hookimpl\ndef register_adapters(colour): ...\n", "colour", *out)
    wrapper = "@hookimpl(wrapper=True)\ndef register_adapters():\n    return (yield)\n"
    yield plugin("a wrapper", HOOK + wrapper, "is a wrapper", *out)
    yield plugin("no such module", "", "states no API version", *out)


def _registering() -> Iterator[Entry]:
    out = ("--without acme", "uninstall acme-tools")
    yield registers("an error", "1 / 0", "register_adapters", "ZeroDivisionError", *out)
    yield registers("nothing", "None", "register_adapters", "TypeError", *out)
    yield registers("a number", "5", "register_adapters", "TypeError", *out)
    yield registers("numbers", "[1]", "registered 1 as adapter", "an instance of pefttool.Adapter", *out)
    yield registers("a class", "[Fake]", "an instance of pefttool.Adapter with a name", *out)
    yield registers(
        "a name outside", "[type('F', (Fake,), {'name': '../x'})()]", "'../x'", "has to be of letters", *out
    )
    yield registers("an empty name", "[type('F', (Fake,), {'name': ''})()]", "with a name", *out)
    yield registers("a name of numbers", "[type('F', (Fake,), {'name': 5})()]", "with a name", *out)
    yield registers("options of another kind", "[type('F', (Fake,), {'Options': dict})()]", "pefttool.Options", *out)
    yield registers("one name twice", "[Fake(), Fake()]", "'fake'", "2 times", "uninstall it", real=True)
    endless = "(1 / 0 for _ in iter(int, 1))"
    yield registers("an iterator that fails", endless, "register_adapters", "ZeroDivisionError", *out)
    yield registers("an exit", "__import__('sys').exit(3)", "register_adapters", "SystemExit: 3", *out)
    options = "class Named(Options):\n    name: str = 'x'\n"
    taken = f"{HOOK}{FAKE}{options}Fake.Options = Named\n@hookimpl\ndef register_adapters():\n    return [Fake()]\n"
    yield plugin("an option called name", taken, "a field 'name'", *out)
    task = f"{HOOK}{FAKE}@hookimpl\ndef register_tasks():\n    return [Fake()]\n"
    yield plugin("an adapter for a task", task, "as task", "an instance of pefttool.Task", *out)
    abstract = HOOK + "@hookimpl\ndef register_adapters():\n    return [type('F', (Adapter,), {'name': 'f'})()]\n"
    yield plugin("an adapter without methods", abstract, "TypeError", "abstract", *out)
    commands = HOOK + "@hookimpl\ndef register_commands(cli):\n    {}\n"
    yield plugin("an error for commands", commands.format("1 / 0"), "register_commands", "ZeroDivisionError", *out)
    run = commands.format("cli.command('run')(lambda: None)")
    yield plugin("a command that is taken", run, "'run'", "which pefttool has itself", *out)


def _clashes() -> Iterator[Entry]:
    fake = f"{HOOK}{FAKE}@hookimpl\ndef register_adapters():\n    return [Fake()]\n"
    both = ("acme-one 1.0", "acme-two 1.0")
    way = "--without a or --without b"
    show = ("adapters", "show", "fake")
    yield two(
        "one plugin name", API, API, ("acme", "acme"), "'acme'", *both, "uninstall all but one", verb=("plugins",)
    )
    yield two("one adapter name", fake, fake, ("a", "b"), "'fake'", *both, way, verb=("plugins",))
    yield two("one adapter name, asked for", fake, fake, ("a", "b"), "'fake'", *both, way, verb=show)
    command = HOOK + "@hookimpl\ndef register_commands(cli):\n    cli.command('x')(lambda: None)\n"
    yield two("one command", command, command, ("a", "b"), "'x'", *both, way, verb=("plugins",))

    def metadata(folder: Path) -> list[str]:
        install(folder, "acme-tools", API, points=b"[pefttool]\n\xff = x\n")
        install(folder, "acme-two", API, plugin="b")
        return ["plugins"]

    yield Entry("plugin/broken metadata", metadata, ("acme_tools", "reinstall"), codes=(0,), warned=True, plugins="b")
    yield plugin("none of that name", API, "--without", "'zzz'", "allowed: ", verb=("plugins", "--without", "zzz"))


ENTRIES = [*_loading(), *_registering(), *_clashes()]
