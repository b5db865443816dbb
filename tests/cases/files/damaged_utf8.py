"""Lines that are UTF-8 but for one byte, in Shift-JIS, and of noise: none is called Windows-1252."""

from case_bench import Bench

from pefttool.config import registry
from pefttool.data import rows


def check(bench: Bench) -> None:
    path = bench.folder / "a.csv"
    for damaged in (
        "café und Größe".encode() + b"\xe9",
        "これは映画です".encode("shift-jis"),
        b"\x93\x01\x02\xff\xfe\x80",
    ):
        path.write_bytes(b"text,label\n" + damaged + b",a\n")
        (problem,) = rows.read([path], registry.build()).problems
        assert "expected UTF-8 text; it is damaged, or in another encoding: save it as UTF-8" in str(problem)
