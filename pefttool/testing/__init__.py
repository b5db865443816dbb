"""The published contract suite: what every adapter, task, quantizer and format must pass, first-party or not.

    @pytest.mark.parametrize("check", ADAPTER_CHECKS)
    def test_contract(check):
        cases, refused = adapter_cases(MyAdapter())
        for case in cases:
            ADAPTER_CHECKS[check](case)

`check_adapter`, `check_task`, `check_quantizer` and `check_format` run everything at once. A failure is a
ContractViolation that names the object, the check and what was found.
"""

from pefttool.testing.adapters import ADAPTER_CHECKS, adapter_cases, check_adapter
from pefttool.testing.bench import AdapterCase, ContractViolation
from pefttool.testing.models import tiny_decoder, tiny_encoder, tiny_tokenizer
from pefttool.testing.others import check_format, check_quantizer, check_task

__all__ = [
    "ADAPTER_CHECKS",
    "AdapterCase",
    "ContractViolation",
    "adapter_cases",
    "check_adapter",
    "check_format",
    "check_quantizer",
    "check_task",
    "tiny_decoder",
    "tiny_encoder",
    "tiny_tokenizer",
]
