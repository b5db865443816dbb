"""Two columns of text are an error of the file, and not of each of its lines."""

from case_bench import Bench


def check(bench: Bench) -> None:
    path = bench.folder / "sensors.csv"
    path.write_text("machine,time,power,state\n" + "".join(f"M{i % 2},{i},{i},ok\n" for i in range(40)))
    answer = bench.pefttool("data", "check", path, "--format", "series-long")
    assert answer.code == 1
    assert "found text in column 'machine' (such as 'M0'), 'state' (such as 'ok'), expected numbers" in answer.text
    assert "there is no `id`) with -o data.format_options.id_column=COLUMN" in answer.text, answer.text
    assert answer.text.count("M0") == 1
    options = ("-o", "data.format_options.id_column=machine", "-o", "data.format_options.label_column=state")
    answer = bench.pefttool(
        "data", "check", path, "--format", "series-long", *options, "--task", "series-classification"
    )
    assert "2 rows" in answer.text, answer.text
    answer = bench.pefttool(
        "data", "check", path, "--format", "series-long", "-o", "data.format_options.id_column=mashine"
    )
    assert "expected 'mashine'" in answer.text, answer.text
