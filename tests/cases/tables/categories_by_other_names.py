"""A table whose held-out file codes a column otherwise."""

from case_bench import Bench

TASK = ("--task", "tabular-classification")


def check(bench: Bench) -> None:
    def rows(count: int, names: tuple[str, ...], shift: int = 0) -> list[dict[str, object]]:
        return [
            {
                "age": (i * 7 + shift) % 50,
                "pay": i % 13 + shift,
                "sex": names[i % len(names)],
                "label": "ny"[i * 3 % 5 % 2],
            }
            for i in range(count)
        ]

    train = bench.write("train.jsonl", *rows(60, ("M", "F")))

    def answer(name: str, held: list[dict[str, object]]) -> str:
        path = bench.write(name, *held)
        answer = bench.pefttool("data", "check", train, *TASK, "-o", f"data.eval={path}")
        assert (answer.code == 0) is ("nothing is wrong with it" in answer.text), answer.text
        return answer.text

    recoded = answer("recoded.jsonl", rows(30, ("male", "female"), 1))
    assert "column 'sex': found 'male', and none of its 30 values is one of the training rows' (F, M)" in recoded, (
        recoded
    )
    for name, held in {
        "some.jsonl": rows(30, ("M", "F", "X"), 1),
        "few.jsonl": rows(6, ("male", "female"), 1),
        "one.jsonl": rows(30, ("X",), 1),
        "small.jsonl": rows(30, (" m", "f"), 1),
    }.items():
        assert "nothing is wrong with it" in answer(name, held), name
