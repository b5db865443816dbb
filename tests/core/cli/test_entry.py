"""The command line: what it prints where, its exit codes, and that the light verbs stay light."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys

import click
import pytest
from fake_plugins import API, HOOK, Install, adapters
from terminal import Terminal

from pefttool.cli import entry, group
from pefttool.config.plugins import ALLOW_LIST

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "sklearn", "numpy", "pandas")
COMMANDS = HOOK + "import click\n@hookimpl\ndef register_commands(cli):\n"


def command(name: str, body: str) -> str:
    """Lines of a `register_commands` that adds a command."""
    return f"    @cli.command({name!r})\n    def _():\n        '''Does a thing.'''\n        {body}\n"


def child(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != ALLOW_LIST}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**clean, **environment}, timeout=120
    )


@pytest.mark.parametrize("name", ["data", "examples"])
def test_a_group_without_its_command_shows_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In lines, as it is written: it is no error's one line."""
    code = entry.execute([name])
    printed = capsys.readouterr()
    lines = (printed.err + printed.out).splitlines()
    assert f"Usage: pefttool {name} [OPTIONS] COMMAND [ARGS]..." in lines and "Commands:" in lines
    assert code in (0, 2) and "error:" not in printed.err


# --- light verbs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["plugins", "--json"],
        ["adapters"],
        ["adapters", "show", "lora"],
        ["tasks", "show", "chat"],
        ["recipe", "--schema"],
        ["recipe", "--adapter", "lora", "--model", "m", "--data", "d", "--task", "chat", "-o", "train.epochs=2"],
    ],
    ids=" ".join,
)
def test_light_verbs_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, json\nfrom pefttool.cli.entry import execute\n"
        f"code = execute({arguments!r})\n"
        f"print(json.dumps([code, sorted(set({HEAVY!r}) & set(sys.modules))]), file=sys.stderr)"
    )
    done = child("-c", code)
    assert json.loads(done.stderr.splitlines()[-1]) == [0, []], done.stderr


def test_help_takes_less_than_a_second_of_processor_time() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = child("-m", "pefttool", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and "Usage: pefttool" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


@pytest.mark.parametrize("name", group.VERBS)
def test_the_table_of_verbs_is_what_the_commands_say(name: str) -> None:
    module, attribute = group.VERBS[name].target.split(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, click.Command)
    assert found.name == name
    assert found.get_short_help_str(limit=100).startswith(group.VERBS[name].help.removesuffix("."))


def test_help_shows_every_verb(terminal: Terminal) -> None:
    for arguments in (["--help"], ["-h"], []):
        code, out, err = terminal.run(*arguments)
        assert code == 0 and not err
        for name, verb in group.VERBS.items():
            assert any(line.split() == [name, *verb.help.split()] for line in out.splitlines())


# --- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["adaptrs"], "unknown command 'adaptrs': did you mean 'adapters'?"),
        (["run", "--adaptr", "lora"], "No such option '--adaptr'"),
        (["--frobnicate"], "No such option '--frobnicate'"),
        (["adapters", "show"], "Missing argument 'NAME'"),
        (["adapters", "show", "lora"], "unknown adapter 'lora': (allowed: none)"),
        (["recipe", "none.yaml"], "recipe none.yaml cannot be read"),
        (["recipe", "--model", "m", "--data", "d"], "adapter: none given"),
        (["--without", "zzz", "plugins"], "--without: plugin 'zzz' is not installed"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(terminal: Terminal, arguments: list[str], reason: str) -> None:
    code, out, err = terminal.run(*arguments)
    assert code == 2 and not out
    (line,) = err
    assert line.startswith("error: ") and reason in line


def test_every_mistake_has_its_line(terminal: Terminal) -> None:
    code, _, err = terminal.run("recipe", "--adapter", "x", "--model", "m", "--data", "d", "-o", "train.epoch=2")
    assert code == 2
    assert [line.split(":")[:2] for line in err] == [["error", " adapter.name"], ["error", " train.epoch"]]


@pytest.mark.parametrize(
    ("body", "code", "line"),
    [
        ("raise KeyboardInterrupt", 130, "error: interrupted"),
        ("raise click.Abort", 130, "error: interrupted"),
        ("from pefttool import DataError; raise DataError('f:3: bad')", 1, "error: f:3: bad"),
        ("raise click.BadParameter('no')", 2, "error: Invalid value: no"),
    ],
)
def test_what_a_command_raises(terminal: Terminal, install: Install, body: str, code: int, line: str) -> None:
    install("acme", COMMANDS + command("fail", body))
    terminal.allow("acme")
    found, _, err = terminal.run("fail")
    assert found == code
    (text,) = filter(None, err)  # click ends the terminal's ^C line first
    assert text.startswith(line)


def test_a_bug_is_one_line_and_the_traceback_on_demand(
    install: Install, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = install("acme", COMMANDS + command("fail", "raise KeyError('two\\nlines')"))
    monkeypatch.setenv(ALLOW_LIST, "acme")
    assert entry.execute(["fail"]) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: KeyError: ") and str(folder) in line and "PEFTTOOL_TRACEBACK=1" in line
    monkeypatch.setenv(entry.TRACEBACK, "1")
    assert entry.execute(["fail"]) == 70
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(("body", "code"), [("return 3", 0), ("click.get_current_context().exit(3)", 3)])
def test_only_exit_sets_the_code(terminal: Terminal, install: Install, body: str, code: int) -> None:
    install("acme", COMMANDS + command("stop", body))
    terminal.allow("acme")
    assert terminal.run("stop") == (code, "", [])


def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from pefttool import cli

    monkeypatch.setattr(sys, "argv", ["pefttool", "nothing"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2


def test_a_closed_pipe_is_quiet() -> None:
    code = "import subprocess, sys\nsys.exit(0)"
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    reader.wait()
    assert reader.stdin is not None
    done = subprocess.run(
        [sys.executable, "-m", "pefttool", "recipe", "--schema"],
        stdout=reader.stdin,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={**os.environ, ALLOW_LIST: ""},
    )
    reader.stdin = None
    assert done.stderr == "" and done.returncode == 1


# --- plugins -----------------------------------------------------------------------------------------------------


def test_plugins_says_who_ships_what(terminal: Terminal, install: Install) -> None:
    observer = "@hookimpl\ndef on_event(event): ...\n@hookimpl\ndef register_commands(cli):\n"
    install("acme-one", adapters("ant", "bee") + observer + command("buzz", "pass"), plugin="one", version="1.5")
    install("acme-two", "raise ValueError('no')", plugin="two")
    terminal.allow("one", "two")
    code, out, err = terminal.run("plugins", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["plugins"] == [
        {
            "name": "one",
            "distribution": "acme-one",
            "version": "1.5",
            "api_version": 2,
            "registers": {"adapters": ["ant", "bee"], "observers": ["one"], "commands": ["buzz"]},
        }
    ]
    (complaint,) = found["complaints"]
    assert err == [f"warning: {complaint}"]
    code, out, err = terminal.run("plugins")
    assert code == 0 and err == [f"warning: {complaint}"]
    assert out.splitlines()[1].split() == [
        *["one", "acme-one", "1.5", "2"],
        *["adapters:", "ant,", "bee;", "observers:", "one;", "commands:", "buzz"],
    ]


def test_without_is_taken_before_and_after_the_verb(terminal: Terminal, install: Install) -> None:
    for name in ("a", "b", "c"):
        install(f"acme-{name}", adapters(f"ad-{name}"), plugin=name)
    terminal.allow("a", "b", "c")

    def listed(*arguments: str) -> list[str]:
        code, out, _ = terminal.run(*arguments)
        assert code == 0
        return [entry["name"] for entry in json.loads(out)]

    assert listed("adapters", "--json") == ["ad-a", "ad-b", "ad-c"]
    assert listed("--without", "a", "adapters", "--json") == ["ad-b", "ad-c"]
    assert listed("adapters", "--without", "a", "--without", "c", "--json") == ["ad-b"]
    assert listed("--without", "b", "adapters", "--without=a", "--json") == ["ad-c"]
    code, _, (line,) = terminal.run("adapters", "show", "ad-a", "--without", "a")
    assert code == 2 and "unknown adapter 'ad-a'" in line
    for verb in group.VERBS:
        assert "--without PLUGIN" in terminal.run(verb, "--help")[1]


def test_plugins_add_commands_and_cannot_replace_any(terminal: Terminal, install: Install) -> None:
    install("acme-a", COMMANDS + command("extra", "click.echo('done')") + command("run", "pass"), plugin="a")
    install("acme-b", COMMANDS + command("twin", "pass"), plugin="b")
    install("acme-c", COMMANDS + command("twin", "pass") + command("late", "pass"), plugin="c")
    install("acme-d", COMMANDS + command("half", "pass") + "    raise ValueError('no')\n", plugin="d")
    install("acme-e", HOOK + "@hookimpl\ndef register_commands():\n    pass\n", plugin="e")
    terminal.allow("a", "b", "c", "d", "e")
    code, out, err = terminal.run("--help")
    assert code == 0
    words = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line.split()]
    assert "extra" in words and "late" in words and "twin" not in words and "half" not in words
    assert words.count("run") == 1
    replaced, failed, clash = err
    assert "plugin 'a' from acme-a 1.0 registered the command 'run', which pefttool has itself" in replaced
    assert "command 'twin' is registered by plugin 'b' from acme-b 1.0 and plugin 'c' from acme-c 1.0" in clash
    assert "plugin 'd' from acme-d 1.0 failed in register_commands: ValueError: no" in failed
    assert terminal.run("extra")[:2] == (0, "done\n")
    assert "Fine-tune" in terminal.run("run", "--help")[1]


def test_help_survives_a_wrong_allow_list(terminal: Terminal) -> None:
    terminal.allow("nope")
    code, out, err = terminal.run("--help")
    assert code == 0 and "Commands:" in out
    assert len(err) == 1 and err[0].startswith(f"warning: {ALLOW_LIST}: plugin 'nope' is not installed")
    assert terminal.run("plugins")[0] == 2


def test_python_m_is_the_command() -> None:
    done = child("-m", "pefttool", "--version")
    from pefttool import __version__

    assert (done.returncode, done.stdout, done.stderr) == (0, f"pefttool {__version__}\n", "")


def test_api_constant_is_the_one_that_plugins_state() -> None:
    from pefttool import API_VERSION

    assert f"pefttool_api_version = {API_VERSION}\n" == API
