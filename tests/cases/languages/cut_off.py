"""Four words in a window of six tokens: what is left of each target still ends as the tokenizer has it."""

from case_bench import Bench
from transformers import AutoTokenizer

from pefttool import Row, Setting
from pefttool_text.seq2seq import Seq2Seq, Seq2SeqOptions


def check(bench: Bench) -> None:
    for name, behind in (("mbart", 2), ("mbart50", 1)):
        tokenizer = AutoTokenizer.from_pretrained(bench.model(name), src_lang="en_XX", tgt_lang="de_DE")
        whole = tokenizer(text_target="the acting is great")["input_ids"]
        row = Row({"source": "the plot is thin", "target": "the acting is great"})
        labels = Seq2Seq().encode(row, tokenizer, Setting(Seq2SeqOptions(), sequence_length=12))["labels"]
        assert len(labels) == 6 < len(whole)
        assert labels == [*whole[: 6 - behind], *whole[-behind:]]
