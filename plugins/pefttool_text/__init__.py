"""Tasks on text, from classification to preferences, and the file formats that every task can read."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 1


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_text.causal_lm import CausalLM
    from pefttool_text.chat import Chat
    from pefttool_text.classification import TextClassification
    from pefttool_text.preference import PreferenceTuning
    from pefttool_text.seq2seq import Seq2Seq

    return [CausalLM(), Chat(), PreferenceTuning(), Seq2Seq(), TextClassification()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_text.formats import formats

    return formats()
