import json
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal

import pyarrow
from case_bench import Bench
from pyarrow import parquet

VALUES = {
    "moment": datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
    "clock": time(3, 4, 5),
    "span": timedelta(hours=1),
    "price": Decimal("12.50"),
    "blob": b"\x00\xff",
    "picture": bytes(100),
    "nested": [{"at": datetime(2024, 1, 2)}],
    "gap": float("nan"),
}
#: As ISO 8601, as hexadecimal digits, or as Python writes them.
WRITTEN = {
    "moment": "2024-01-02T03:04:05+00:00",
    "clock": "03:04:05",
    "span": "1:00:00",
    "price": "12.50",
    "blob": "00ff",
    "picture": "100 bytes",
    "nested": [{"at": "2024-01-02T00:00:00"}],
    "gap": None,
}


def check(bench: Bench) -> None:
    rows = [{"text": f"{'warm' if n % 2 else 'cold'} {n}", "label": "ab"[n % 2], **VALUES} for n in range(16)]
    path = bench.folder / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    run = bench.run("--adapter", "lora", "--model", bench.model("bert"), "--data", path)
    for written in (run.samples, run.events("RunFinished")[0]["samples"]):
        assert written and all({name: s["row"][name] for name in VALUES} == WRITTEN for s in written)
    checked = bench.pefttool("data", "check", path, "--json")
    assert checked.code == 0, checked.text
    assert {name: json.loads(checked.out)["first"][name] for name in VALUES} == WRITTEN
    for command in ("eval", "predict"):
        answer = bench.pefttool(command, run.folder, "--data", path)
        assert answer.code == 0, answer.text
    kept = [event for event in run.notices if "cannot be kept" in event]
    assert not kept and any((bench.folder / "cache").rglob("*.safetensors")), "encoded rows are kept for the next run"
