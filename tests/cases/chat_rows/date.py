"""A run, the same run after midnight, a run of another day, and one that is given the first one's date."""

import datetime

from case_bench import Bench
from chat_support import tokenizer_of

from pefttool_text import chat_template
from pefttool_text.chat import Chat


def check(bench: Bench) -> None:
    def today(day: int) -> None:
        """Both clocks: pefttool's, and the one that templates are given."""

        class Clock(datetime.datetime):
            @classmethod
            def now(cls, tz: object = None) -> datetime.datetime:
                return datetime.datetime(2026, 11, day, 12)

        class Day(datetime.date):
            @classmethod
            def today(cls) -> datetime.date:
                return datetime.date(2026, 11, day)

        bench.monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
        bench.monkeypatch.setattr(chat_template, "today", Day.today)

    def adapter(folder: object) -> bytes:
        return (folder / "adapter" / "adapter_model.safetensors").read_bytes()  # type: ignore[operator]

    def keys() -> set[str]:
        return {path.name for path in (bench.folder / "cache").rglob("*") if path.is_file()}

    given = ("--adapter", "lora", "--model", bench.model("llama31"), "--data", bench.input())
    today(20)
    first = bench.run(*given)
    assert "Today Date: 20 Nov 2026" in first.events("DataReady")[0]["preview"]
    assert "date: '2026-11-20'" in (first.folder / "recipe.yaml").read_text(encoding="utf-8")
    assert (
        first.folder.joinpath("adapter", "pefttool.json").read_text(encoding="utf-8").count('"date": "2026-11-20"') == 1
    )
    kept = keys()

    today(21)  # midnight has passed: the run again is the same run, from the same rows
    again = bench.folder / "again"
    assert bench.pefttool("run", first.folder / "recipe.yaml", "--out", again, "-o", "check=none").code == 0
    assert adapter(again) == adapter(first.folder) and keys() == kept
    other = bench.run(*given, "-o", "check=none")
    assert "Today Date: 21 Nov 2026" in other.events("DataReady")[0]["preview"]
    assert adapter(other.folder) != adapter(first.folder) and keys() - kept, "rows of another day were read"

    fixed = bench.run(*given, "--task", "chat", "-o", "task.date=2026-11-20", "-o", "check=none")
    assert adapter(fixed.folder) == adapter(first.folder)
    answers = [
        bench.pefttool("predict", folder, "--text", "what is one?").out for folder in (first.folder, fixed.folder)
    ]
    assert answers[0] == answers[1]

    # Where the template asks for no date, what is kept is good on any day.
    days = [Chat.Options(date=f"2026-11-{day}") for day in (20, 21)]
    asking, plain = (tokenizer_of(bench, name) for name in ("llama31", "chatml"))
    assert Chat().encoding_options(days[0], plain) == Chat().encoding_options(days[1], plain)
    assert Chat().encoding_options(days[0], asking) != Chat().encoding_options(days[1], asking)
