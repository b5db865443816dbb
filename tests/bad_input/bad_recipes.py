"""Recipes that are wrong: as files, and as `-o` on the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bad_entry import Entry

GOOD = "model: m\nadapter: lora\ntask: text-classification\ndata: {train: rows.jsonl}\n"


def file(name: str, content: str | bytes, *words: str, real: bool = False) -> Entry:
    """A recipe file with this content; the answer names it, unless `words` are about keys."""

    def make(folder: Path) -> list[str]:
        path = folder / "bad.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["recipe", str(path)]

    return Entry(f"recipe/{name}", make, words, real)


def keys(name: str, text: str, *words: str, real: bool = False) -> Entry:
    """A good recipe with these lines more."""
    return file(name, GOOD + text, *words, real=real)


def option(name: str, overrides: list[str], *words: str, real: bool = False) -> Entry:
    def make(folder: Path) -> list[str]:
        path = folder / "good.yaml"
        path.write_text(GOOD)
        return ["recipe", str(path), *(part for one in overrides for part in ("-o", one))]

    return Entry(f"option/{name}", make, words, real)


def arguments(name: str, given: list[str], *words: str, real: bool = False) -> Entry:
    return Entry(f"recipe/{name}", lambda folder: ["recipe", *given], words, real)


def bomb(levels: int, width: int) -> str:
    lines = ["a0: &a0 [x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)]
    return "\n".join(lines)


def _files() -> Iterator[Entry]:
    yield file("empty", "", "adapter: none given", "--adapter NAME", real=True)
    yield file("blank lines", "\n\n  \n", "adapter: none given")
    yield file("only a comment", "# model: m\n", "adapter: none given")
    yield file("null", "~\n", "adapter: none given")
    yield file("a number", "42", "bad.yaml:1", "is a int", "expected keys")
    yield file("a text", "lora", "bad.yaml:1", "is a str", "expected keys")
    yield file("a list", "- model: m\n- adapter: lora\n", "bad.yaml:1", "is a list", "expected keys")
    yield file("a truth value", "yes\n", "bad.yaml:1", "is a bool", "expected keys")
    yield file("binary", bytes(range(256)) * 4, "bad.yaml", "0x80", "save it as UTF-8", real=True)
    yield file("a picture", b"\x89PNG\r\n\x1a\n" + bytes(99), "bad.yaml", "0x89", "UTF-8")
    yield file("zeros", bytes(500), "bad.yaml", "#x0000", "mend")
    yield file("UTF-16", GOOD.encode("utf-16"), "bad.yaml", "0xff at position 1", "save it as UTF-8")
    yield file("UTF-32", GOOD.encode("utf-32"), "bad.yaml", "0xff", "save it as UTF-8")
    yield file("Latin-1", "model: caf\xe9\n".encode("latin-1"), "bad.yaml", "0xe9", "save it as UTF-8")
    yield file("a lone surrogate", b"model: \xed\xa0\x80\n", "bad.yaml", "0xed", "save it as UTF-8")
    yield file("an escape character", "model: \x1b[31mred\n", "bad.yaml", "#x001b")
    yield file("truncated in a list", "model: [a, b", "bad.yaml:1", "is not YAML", "mend that line")
    yield file("truncated in a quote", 'model: "m\nadapter: lora\n', "bad.yaml:3", "is not YAML")
    yield file("truncated in a mapping", "data: {train: x,", "bad.yaml:1", "is not YAML")
    yield file("a tab for indentation", "data:\n\ttrain: x\n", "bad.yaml:2", "'\\t'", "mend that line")
    yield file("indentation", "model: m\n  adapter: lora\n", "bad.yaml:2", "is not YAML")
    yield file("no space behind a colon", "model:m\nadapter: lora\n", "bad.yaml", "is not YAML")
    yield file("JSON with a comment", '{"model": "m", // mine\n "adapter": "lora"}', "bad.yaml", "is not YAML")
    yield file("two documents", "model: m\n---\nmodel: n\n", "bad.yaml:2", "is not YAML")
    yield file("another version of YAML", "%YAML 3.0\n---\nmodel: m\n", "bad.yaml", "incompatible YAML document")
    yield file("a merge conflict", f"<<<<<<< HEAD\n{GOOD}=======\n{GOOD}>>>>>>> theirs\n", "bad.yaml", "is not YAML")
    yield file("HTML", "<!DOCTYPE html>\n<html><body>404: not found</body></html>\n", "bad.yaml", "mend")
    yield file("a diff", "--- a/r.yaml\n+++ b/r.yaml\n@@ -1 +1 @@\n-model: m\n", "bad.yaml", "mend that line")
    yield file("nested too deeply", "[" * 20_000, "bad.yaml", "nested too deeply", "two levels")
    yield file("mappings nested too deeply", "a: {" * 5_000, "bad.yaml", "nested too deeply")
    yield file("too long", "# " + "x" * (1 << 20) + "\n", "bad.yaml", "longer than 1048576 bytes", real=True)
    yield file("a bomb", bomb(9, 10), "bad.yaml:2", "alias *a0", "write the value out", real=True)
    yield file("a small bomb", "train: &t {epochs: 1}\ngeneration: *t\n", "bad.yaml:2", "alias *t")
    yield file("a document within itself", "adapter: &a {name: lora, target_modules: *a}\n", "bad.yaml:1", "alias *a")
    yield file("an alias of nothing", "model: *nothing\n", "bad.yaml:1", "alias *nothing")
    yield file("a merge of an alias", "a: &a {r: 1}\nadapter: {<<: *a}\n", "bad.yaml:2", "alias *a")
    yield file("two anchors of one name", "a: &a 1\nb: &a 2\n", "bad.yaml:2", "second occurrence", "mend that line")
    yield file(
        "a tag that calls", "model: !!python/object/apply:os.system [echo]\n", "bad.yaml:1", "os.system", real=True
    )
    yield file("a tag of a name", "model: !!python/name:os.system\n", "bad.yaml:1", "os.system")
    yield file("a tag of a module", "model: !!python/module:os\n", "bad.yaml:1", "python/module:os")
    yield file("a tag of an object", "model: !!python/object/new:os.system [x]\n", "bad.yaml:1", "os.system")
    yield file("a tag of a tuple", "model: !!python/tuple [1]\n", "bad.yaml:1", "python/tuple")
    yield file("a tag of one's own", "model: !path x\n", "bad.yaml:1", "!path")
    yield file("a tag of the whole", "!recipe\nmodel: m\n", "bad.yaml:1", "!recipe")
    yield file("a number that is none", 'train: {epochs: !!int "x"}\n', "bad.yaml", "is not YAML")
    yield file("a float that is none", 'train: {epochs: !!float "x"}\n', "bad.yaml", "is not YAML")
    yield file("a date that is none", "model: 2026-13-45\n", "bad.yaml", "is not YAML", "month")
    yield file("base64 that is none", "model: !!binary 'x'\n", "bad.yaml:1", "base64")
    yield file("a key of a list", "[a, b]: c\n", "bad.yaml:1", "unhashable key")
    yield file("a key twice", "model: m\nmodel: n\n", "bad.yaml:2", "'model' is there twice", "mend that line")
    yield file("a key twice in a section", "train: {epochs: 1, epochs: 2}\n", "bad.yaml:1", "'epochs' is there twice")
    yield arguments("missing", ["no-such-recipe.yaml"], "no-such-recipe.yaml", "No such file", "give the path")
    yield arguments("a device that never ends", ["/dev/zero"], "/dev/zero", "longer than", "give another", real=True)
    yield arguments("a device without end", ["/dev/urandom"], "/dev/urandom", "give another")
    yield arguments("no name", [""], "recipe .", "give the path of a YAML file")
    yield arguments("a name too long", ["x" * 5000], "File name too long", "give the path")
    yield Entry("recipe/a folder", lambda folder: ["recipe", str(folder)], ("Is a directory", "give the path"))
    yield Entry("recipe/a link to itself", _loop, ("loop.yaml", "symbolic links", "give the path"))
    yield Entry("recipe/a file as a folder", _below_a_file, ("Not a directory", "give the path"))


def _loop(folder: Path) -> list[str]:
    (folder / "loop.yaml").symlink_to("loop.yaml")
    return ["recipe", str(folder / "loop.yaml")]


def _below_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("model: m")
    return ["recipe", str(folder / "file" / "r.yaml")]


def _keys() -> Iterator[Entry]:
    yield keys("an unknown key", "optimizer: adamw\n", "optimizer: unknown key", "'train.optimizer'", real=True)
    yield keys("a misspelt key", "trian: {epochs: 1}\n", "trian: unknown key", "did you mean 'train'")
    yield keys("a misspelt key in a section", "train: {epoch: 1}\n", "train.epoch: unknown key", "'epochs'")
    yield keys("a key without a section", "epochs: 3\n", "epochs: unknown key", "did you mean 'train.epochs'")
    yield keys("a number as a key", "1: x\n", "1: unknown key", "allowed:")
    yield keys("a truth value as a key", "on: x\n", "True: unknown key", "allowed:")
    yield keys("null as a key", "~: x\n", "None: unknown key", "allowed:")
    yield keys("a date as a key", "2026-01-01: x\n", "2026-01-01: unknown key", "allowed:")
    yield keys("an empty key", "'': x\n", "unknown key", "allowed:")
    yield keys("a key of line breaks", '"a\\nb": x\n', "unknown key", "allowed:")
    yield keys("a very long key", f"? {'k' * 50_000}\n: x\n", "unknown key", "allowed:")
    yield keys("an escape in a key", '"\\e[31mred": x\n', "unknown key", "allowed:")
    yield keys("a section that is a number", "train: 5\n", "train: 5", "a section with keys, such as train.epochs")
    yield keys("a section that is a list", "train: [epochs, 3]\n", "train:", "a section with keys")
    yield keys("a section that is a text", "memory: lots\n", "memory: 'lots'", "such as memory.budget")
    yield keys("a section too deep", "train: {epochs: {deep: 3}}\n", "train.epochs", "number")
    yield file("an adapter that is a list", "model: m\nadapter: [lora]\ndata: {train: x}\n", "adapter", "NAME")
    yield file("an adapter without a name", "model: m\nadapter: {r: 8}\ndata: {train: x}\n", "adapter: none given")
    yield file("an adapter that is a number", "model: m\nadapter: 5\ndata: {train: x}\n", "adapter")
    yield file("an adapter's name of a number", "model: m\nadapter: {name: 5}\ndata: {train: x}\n", "adapter.name: 5")
    yield option("an unknown adapter", ["adapter.name=lorra"], "adapter.name: unknown adapter 'lorra'", "'lora'")
    yield option("an adapter outside", ["adapter.name=../x"], "unknown adapter '../x'", "allowed:")
    yield option("an unknown task", ["task.name=chatt"], "task.name: unknown task 'chatt'", "did you mean 'chat'")
    yield option("an unknown quantizer", ["quantize=nf5"], "quantize.name: unknown quantizer 'nf5'", "allowed:")
    yield option(
        "an option of no quantizer", ["quantize=nf4", "quantize.double=no"], "quantize.double: unknown key", "allowed:"
    )
    yield option(
        "scales of a number", ["quantize=nf4", "quantize.double_quant=7"], "quantize.double_quant: 7", "boolean"
    )
    yield option("an unknown format", ["data.format=cvs"], "data.format: unknown format 'cvs'", "'csv'")
    yield option("a quantizer of a list", ["quantize=[nf4]"], "quantize", "is not a name", "allowed:")
    yield option("an unknown option", ["adapter.rank=8"], "adapter.rank: unknown key", "allowed:")
    yield option("a rank of zero", ["adapter.r=0"], "adapter.r: 0", "greater than or equal to 1")
    yield option("a rank below zero", ["adapter.r=-8"], "adapter.r: -8", "greater than or equal to 1", real=True)
    yield option("a rank of a half", ["adapter.r=0.5"], "adapter.r: 0.5", "integer")
    yield option("a rank of words", ["adapter.r=eight"], "adapter.r: 'eight'", "integer")
    yield option("a rank that is a list", ["adapter.r=[8]"], "adapter.r: [8]", "integer")
    yield option("a rank of thousands of digits", ["adapter.r=" + "9" * 5000], "-o adapter.r=999", "quote it")
    yield option("an infinite rank", ["adapter.r=.inf"], "adapter.r: inf", "expected")
    yield option("epochs of no number", ["train.epochs=.nan"], "train.epochs: nan", "finite number")
    yield option("infinite epochs", ["train.epochs=.inf"], "train.epochs: inf", "finite number")
    yield option("epochs beyond float64", ["train.epochs=1e999"], "train.epochs: inf", "finite number")
    yield option("no epochs", ["train.epochs=0"], "train.epochs: 0", "greater than 0")
    yield option("epochs in words", ["train.epochs=three"], "train.epochs: 'three'", "number")
    yield option("epochs that are a date", ["train.epochs=2026-01-01"], "train.epochs", "number")
    yield option("a rate of zero", ["train.learning_rate=0"], "train.learning_rate: 0", "greater than 0")
    yield option("a rate below zero", ["train.learning_rate=-1e-4"], "train.learning_rate: -0.0001", "greater than 0")
    yield option("a rate of null", ["train.learning_rate=null"], "train.learning_rate: None", "number")
    yield option("a batch of a half", ["train.batch_size=1.5"], "train.batch_size: 1.5", "integer")
    yield option("an empty batch", ["train.batch_size=0"], "train.batch_size: 0", "greater than or equal to 1")
    yield option("a seed below zero", ["train.seed=-1"], "train.seed: -1", "greater than or equal to 0")
    yield option("a seed too large", ["train.seed=4294967296"], "train.seed: 4294967296", "4294967295")
    yield option("a scheduler", ["train.scheduler=polynomial"], "'polynomial'", "'linear', 'cosine' or 'constant'")
    yield option("an optimizer", ["train.optimizer=adam"], "train.optimizer: 'adam'", "'adamw'")
    yield option("warm-up below zero", ["train.warmup=-0.1"], "train.warmup: -0.1", "greater than or equal to 0")
    yield option("a short sequence", ["train.sequence_length=7"], "train.sequence_length: 7", "equal to 8")
    yield option("a switch in words", ["train.keep_best=perhaps"], "train.keep_best: 'perhaps'", "boolean")
    yield option("patience that forgets", ["train.patience=2", "train.keep_best=false"], "train.patience", "drop one")
    yield option("a dtype", ["dtype=float8"], "dtype: 'float8'", "'bfloat16'")
    yield option("a budget in words", ["memory.budget=lots"], "memory.budget: 'lots'", "6GiB")
    yield option("a budget below zero", ["memory.budget=-3GiB"], "memory.budget: '-3GiB'", "GiB")
    yield option("a budget of nothing", ['memory.budget=""'], "memory.budget: ''", "GiB")
    yield option("offload of everything", ["memory.offload=[all]"], "memory.offload.0: 'all'", "'activations'")
    yield option("a share of all rows", ["data.eval_fraction=1"], "data.eval_fraction: 1", "less than 1")
    yield option("fewer than no rows", ["data.max_train_rows=-5"], "data.max_train_rows: -5", "equal to 1")
    yield option("options of no format", ["data.format_options={a: 1}"], "data.format_options", "data.format=NAME")
    yield option(
        "an option that the format has not",
        ["data.format=csv", "data.format_options.sep=;"],
        "data.format_options.sep: unknown key",
        "allowed: delimiter",
    )
    yield option("a top_p of two", ["generation.top_p=2"], "generation.top_p: 2", "less than or equal to 1")
    yield option("answers of no tokens", ["generation.max_new_tokens=0"], "generation.max_new_tokens: 0", "equal to 1")
    yield option("trust in a number", ["trust_remote_code=5"], "trust_remote_code: 5", "string")
    yield option("trust in all", ["trust_remote_code=true"], "trust_remote_code: True", "string")
    yield keys("a folder outside", "out: /tmp/elsewhere\n", "bad.yaml", "'/tmp/elsewhere'", "--out", real=True)
    yield keys("a folder above", "out: runs/../../x\n", "bad.yaml", "'runs/../../x'", "path inside it")
    yield keys("a folder at home", "out: ~/x\n", "bad.yaml", "'~/x'", "path inside it")
    yield option("no value", ["train.epochs"], "-o train.epochs", "expected key.path=value")
    yield option("no key", ["=3"], "-o =3", "expected key.path=value")
    yield option("a key of dots", ["..=3"], "unknown key", "allowed:")
    yield option("an empty part of a key", ["train..epochs=3"], "train.", "unknown key")
    yield option("a value that is no YAML", ["train.epochs=[3"], "'[3' is not YAML", "quote it")
    yield option("a key below a text", ["model.x=3"], "-o model.x=3", "'model' is 'm'", "remove it there")
    yield option("a section for a value", ["train=5"], "train: 5", "a section with keys")
    yield option("a tag in a value", ["model=!!python/name:os.system"], "is not YAML", "quote it")
    yield option("every mistake at once", ["train.epochs=0", "adapter.r=0"], "train.epochs: 0", "adapter.r: 0")


ENTRIES = [*_files(), *_keys()]
