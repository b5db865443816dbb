"""Text tasks (text-classification, causal-lm, chat) and the file formats that every task can read."""

from collections.abc import Sequence

from pefttool import DataFormat, Task, hookimpl

pefttool_api_version = 1


@hookimpl
def register_tasks() -> Sequence[Task]:
    from pefttool_text.causal_lm import CausalLM
    from pefttool_text.chat import Chat
    from pefttool_text.classification import TextClassification

    return [CausalLM(), Chat(), TextClassification()]


@hookimpl
def register_formats() -> Sequence[DataFormat]:
    from pefttool_text.formats import formats

    return formats()
