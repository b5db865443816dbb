"""Four traces to each answer: what is learnt of such rows is mostly the trace."""

from case_bench import Bench


def check(bench: Bench) -> None:
    for name, traces, told in (("others", 4, False), ("same", 1, True)):
        rows = [
            {
                "messages": [
                    {"role": "user", "content": f"what is {i} and one?"},
                    {"role": "assistant", "content": str(i + 1), "reasoning_content": f"way {way % traces} to {i}"},
                ]
            }
            for i in range(6)
            for way in range(4)
        ]
        answer = bench.pefttool("data", "check", bench.write(f"{name}.jsonl", *rows))
        assert answer.code == 0, answer.text
        assert ("are among the training rows too" in answer.text) == told, answer.text
