"""What the documents tell people to type is accepted, and what they show as code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from pefttool.cli import entry

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
    if ".venv" not in path.parts
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[Path, str]]:
    return [
        (p, text) for p in DOCUMENTS for name, text in BLOCK.findall(p.read_text(encoding="utf-8")) if name == language
    ]


def commands() -> list[tuple[str, list[str]]]:
    """(document, words) of every `pefttool ...` line."""
    found = []
    for path, text in blocks(""):
        for line in text.splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "pefttool":
                found.append((path.name, words[1:]))
            elif "-m" in words and "pefttool" in words:
                found.append((path.name, words[words.index("pefttool") + 1 :]))
    return found


def test_the_documents_have_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize(
    ("document", "words"), commands(), ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_commands_are_accepted(
    document: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's flags are those of `recipe`, which resolves them without training; other verbs must parse."""
    monkeypatch.chdir(ROOT)
    words = words[: words.index(">")] if ">" in words else words
    if {"bitfit", "ranks", "RUN"} & set(words):
        pytest.skip("needs an example package, or a run, which other tests have")
    if "recipe.yaml" in words:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml_blocks()[0], encoding="utf-8")
        words = [str(recipe) if word == "recipe.yaml" else word for word in words]
    if "./llama-8b" in words:  # planned for real, with fewer layers
        from tiny_models import configs

        configs()["llama"].save_pretrained(tmp_path / "llama")
        words = [str(tmp_path / "llama") if word == "./llama-8b" else word for word in words]
        words += ["-o", "train.sequence_length=32"]
    if "FILE" in words:  # the film snippets, whatever the task: bad rows are answered with 1
        from pefttool_examples.carriers import VADER

        if VADER.installed is None:
            pytest.skip(VADER.command)
        words = ["example:movie-snippets" if word == "FILE" else word for word in words]
        assert entry.execute(["recipe", *words[1:]] if words[0] == "run" else words) in (0, 1)
        return
    if words[0] == "examples":  # they download
        words = [*words, "--help"]
    if words[0] == "run":
        assert entry.execute(["recipe", *words[1:]]) == 0, capsys.readouterr().err
        return
    only_parsed = words[0] in ("eval", "predict", "chat", "merge", "check") or (
        words[0] == "kernels" and len(words) > 1
    )
    code = entry.execute([*words, "--help"] if only_parsed else words)
    assert code == 0, capsys.readouterr().err


def yaml_blocks() -> list[str]:
    return [text for _, text in blocks("yaml")]


def test_recipes_in_the_documents_resolve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert yaml_blocks()
    for text in yaml_blocks():
        path = tmp_path / "r.yaml"
        path.write_text(text, encoding="utf-8")
        assert entry.execute(["recipe", str(path)]) == 0, capsys.readouterr().err


@pytest.mark.parametrize(("path", "text"), blocks("python"), ids=lambda v: v.name if isinstance(v, Path) else "")
def test_python_in_the_documents_compiles_and_its_imports_exist(path: Path, text: str) -> None:
    compile(text, path.name, "exec")
    imports = [
        line
        for line in text.splitlines()
        if re.match(r"(from \S+ )?import ", line) and "bitfit" not in line  # not installed here
    ]
    exec("\n".join(imports), {})


def test_links_in_the_documents_lead_somewhere() -> None:
    for path in DOCUMENTS:
        prose = BLOCK.sub("", path.read_text(encoding="utf-8"))  # code has brackets of its own
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", prose):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_first_run_written_out_is_the_built_in_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.execute(["recipe", str(ROOT / "examples" / "first_run" / "recipe.yaml")]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert entry.execute(["recipe", "--adapter", "lora"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == written


def test_every_adapter_figure_has_its_command() -> None:
    """A table in docs/adapters.md comes with the command that makes it."""
    text = (ROOT / "docs" / "adapters.md").read_text(encoding="utf-8")
    tables = re.findall(r"<!-- \S+: made by (\S+) -->(.*?)<!-- end of", text, re.DOTALL)
    assert tables
    for script, table in tables:
        assert (ROOT / script).is_file()
        assert "| lora |" in table and f"`python {script}" in table and "*Measured*" in table


def test_the_page_of_tasks_names_every_task_and_format() -> None:
    from pefttool.config import registry

    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    found = registry.build()
    names = [
        name for kind in (found.tasks, found.formats) for name in kind if kind.owner(name).distribution == "pefttool"
    ]
    assert [name for name in names if f"`{name}`" not in page] == []
