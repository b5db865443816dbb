"""The published contract suite: what every adapter, task, quantizer and format must pass, first-party or not.

    CASES, REFUSED = adapter_cases(MyAdapter(), installed())

    @pytest.mark.parametrize("check", ADAPTER_CHECKS)
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_contract(case, check):
        ADAPTER_CHECKS[check](case)

`installed()` is what all plugins register, the quantizers among it. `check_adapter`, `check_task`, `check_quantizer`
and `check_format` run everything at once; `check_resume` trains twice, and interrupts the second run. A failure is a
ContractViolation (an AssertionError) that names the object, what it ran on, and what was found. `tiny_encoder` and
`tiny_decoder` make the random models that the checks run on. Importing this imports no torch.
"""

from pefttool.config.registry import build as installed
from pefttool.testing.adapters import ADAPTER_CHECKS
from pefttool.testing.bench import AdapterCase, ContractViolation
from pefttool.testing.cases import adapter_cases, check_adapter
from pefttool.testing.formats import check_format
from pefttool.testing.models import tiny_decoder, tiny_encoder, tiny_tokenizer
from pefttool.testing.quantizers import check_quantizer
from pefttool.testing.resumption import check_resume
from pefttool.testing.tasks import check_task

__all__ = [
    "ADAPTER_CHECKS",
    "AdapterCase",
    "ContractViolation",
    "adapter_cases",
    "check_adapter",
    "check_format",
    "check_quantizer",
    "check_resume",
    "check_task",
    "installed",
    "tiny_decoder",
    "tiny_encoder",
    "tiny_tokenizer",
]
