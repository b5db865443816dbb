"""What is asked with, and what is learnt, of a tokenizer that puts BOS before and EOS behind whatever it is given."""

from case_bench import Bench
from case_models.building import chat_tokenizer
from chat_support import encoded
from tokenizers import processors

from pefttool import Row, Setting
from pefttool_text.batching import IGNORE
from pefttool_text.causal_lm import CausalLM
from pefttool_text.preference import PreferenceTuning


def check(bench: Bench) -> None:
    tokenizer = chat_tokenizer(["<pad>", "<s>", "</s>"], None, "<s>", "</s>", "<pad>")
    plain = {text: tokenizer(text)["input_ids"] for text in ("are you sure?", " yes", " no")}
    (bos, eos), asked = tokenizer.convert_tokens_to_ids(["<s>", "</s>"]), "are you sure?"
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", bos), ("</s>", eos)]
    )
    assert tokenizer(asked)["input_ids"] == [bos, *plain[asked], eos]
    continued, preferred = CausalLM(), PreferenceTuning()
    row = Row({"text": asked, "prompt": asked})
    assert continued.prompt_ids(row, tokenizer, Setting(continued.Options())) == [bos, *plain[asked]]
    assert preferred.prompt_ids(row, tokenizer, Setting(preferred.Options())) == [bos, *plain[asked]]
    assert encoded(continued, {"text": asked}, tokenizer)["input_ids"] == [bos, *plain[asked], eos]
    found = encoded(preferred, {"prompt": asked, "chosen": " yes", "rejected": " no"}, tokenizer)
    halves = [[bos, *plain[asked], *plain[answer], eos] for answer in (" yes", " no")]
    assert found["input_ids"] == halves[0] + halves[1]
    assert [label for label in found["labels"] if label != IGNORE] == [*plain[" yes"], eos, *plain[" no"], eos]
    assert preferred.check_encoded(found, tokenizer) is None
