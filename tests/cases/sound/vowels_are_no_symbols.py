"""Error rates of texts whose vowels are marks, counted by hand."""

from case_bench import Bench

from pefttool_audio.word_errors import error_rates


def edits(a: list[str], b: list[str]) -> int:
    """Levenshtein's distance."""
    last = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (x != y)))
        last = row
    return last[-1]


def check(bench: Bench) -> None:
    pairs = [
        ("मुझे हिंदी आती है", "मझ हद आत ह"),
        ("தமிழ் மொழி", "தமழ மழ"),
        ("สวัสดี ครับ", "สวสด ครบ"),
        ("naïve café", "naive cafe"),
    ]
    for truth, given in pairs:
        wer, cer = error_rates([f"{truth}!"], [f"¿{given}?"], "basic")
        words, heard = truth.split(), given.split()
        assert wer == edits(words, heard) / len(words), (truth, wer)
        assert cer == edits(list(truth), list(given)) / len(truth), (truth, cer)
