"""Tasks on text (classes, tags, answers, hidden words, other texts, chat, preferences), and common formats."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 2


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_text.causal_lm import CausalLM
    from pefttool_text.chat import Chat
    from pefttool_text.classification import TextClassification
    from pefttool_text.masked_lm import MaskedLM
    from pefttool_text.preference import PreferenceTuning
    from pefttool_text.question_answering import QuestionAnswering
    from pefttool_text.seq2seq import Seq2Seq
    from pefttool_text.token_classification import TokenClassification

    return [
        CausalLM(),
        Chat(),
        MaskedLM(),
        PreferenceTuning(),
        QuestionAnswering(),
        Seq2Seq(),
        TextClassification(),
        TokenClassification(),
    ]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_text.formats import formats

    return formats()
