"""An answer that ends in an accent of its own, or begins with a mark without a width: BERT's tokenizer drops both."""

from case_bench import Bench
from transformers import AutoTokenizer

from pefttool import Row, Setting
from pefttool_text.question_answering import QuestionAnswering, QuestionAnsweringOptions

ROWS = (
    ("the cafe\u0301 is great", "cafe\u0301"),
    ("the \u200bplot is thin", "\u200bplot"),
    ("it is thin\u200b", "thin\u200b"),
)


def check(bench: Bench) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.model("bert"))
    for context, answer in ROWS:
        start = context.index(answer)
        values = {"question": "which?", "context": context, "answers": {"text": [answer], "answer_start": [start]}}
        example = QuestionAnswering().encode(Row(values), tokenizer, Setting(QuestionAnsweringOptions()))
        plain = tokenizer("which?", context, return_offsets_mapping=True)
        inside = [
            i
            for i, (place, part) in enumerate(zip(plain["offset_mapping"], plain.sequence_ids(), strict=True))
            if part == 1 and place[0] < start + len(answer) and place[1] > max(start, place[0])
        ]
        assert example["weight"] == 1
        assert (example["start"], example["end"]) == (inside[0], inside[-1])
