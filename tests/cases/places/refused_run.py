from case_bench import Bench


def check(bench: Bench) -> None:
    rows = bench.write("rows.jsonl", *({"text": f"row {n}", "label": "ab"[n % 2]} for n in range(9)), {"text": "none"})
    command = (
        "run",
        "--adapter",
        "lora",
        "--model",
        bench.model("bert"),
        "--data",
        rows,
        "-o",
        "task=text-classification",
    )
    for more in ((), ("--out", "mine")):
        answer = bench.pefttool(*command, *more)
        assert answer.code == 1 and "rows.jsonl:10" in answer.text, answer.text
    assert not list(bench.folder.glob("runs/*")) and not (bench.folder / "mine").exists()
    (bench.folder / "mine").mkdir()
    (bench.folder / "mine" / ".gitignore").write_text("*")
    (bench.folder / "mine" / ".lock").touch()
    assert bench.pefttool(*command, "--out", "mine").code == 1
    assert [path.name for path in (bench.folder / "mine").iterdir()] == [".gitignore"]
