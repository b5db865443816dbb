from case_bench import Bench
from language_runs import compare


def check(bench: Bench) -> None:
    compare(bench, bench.model("mbart"), ("en_XX", "de_DE"), ("en_XX", "de_DE"), forced=False)
