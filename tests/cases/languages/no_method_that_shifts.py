from case_bench import Bench
from language_runs import compare


def check(bench: Bench) -> None:
    compare(bench, bench.model("nllb"), ("eng_Latn", "deu_Latn"), ("eng_Latn", "deu_Latn"), forced=True)
