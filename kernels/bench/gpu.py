"""Everything about these kernels that only a GPU can tell, in one command.

python kernels/bench/gpu.py             correctness, then speed: plan half an hour on a laptop's GPU
python kernels/bench/gpu.py --quick     the same with fewer weights, rows and rounds: some minutes
python kernels/bench/gpu.py --out DIR   where the JSON lines go; default: results/

Needs an NVIDIA GPU, a CUDA build of torch, triton, bitsandbytes and pefttool; the last part peft and transformers, too.
Close whatever else uses the GPU. Nothing is timed before every kernel has been found correct on it. Please send the
file that this writes, whatever it says. Exit status: 0, 1 for a wrong result or a failure, 2 where it cannot run.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import logging
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from gpu_record import Record

#: The linear layers of Llama-3.1-8B, [out_features, in_features].
LLAMA_8B = ((4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336))
NEEDED = ("torch", "triton", "bitsandbytes", "pefttool_kernels")
NEEDED_FOR_TRAINING = ("peft", "transformers")
FAILED, CANNOT_RUN = 1, 2


@dataclass(frozen=True)
class Plan:
    """What is measured. `kinds` are (kind, nested scales); dtypes by torch's names."""

    kinds: tuple[tuple[str, bool], ...] = (("nf4", True), ("nf4", False), ("int8", False))
    dtypes: tuple[str, ...] = ("bfloat16", "float16")
    shapes: tuple[tuple[int, int], ...] = LLAMA_8B
    rows: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    rounds: int = 50
    loss: tuple[tuple[int, int, int], ...] = ((512, 128256, 4096), (2048, 128256, 4096))  # tokens, vocabulary, hidden
    training: dict[str, int] = field(default_factory=dict)  # sizes other than a Llama-3.1-8B layer's
    tokens: tuple[int, ...] = (512, 2048)
    steps: int = 10


FULL = Plan()
QUICK = Plan(
    kinds=(("nf4", True),),
    dtypes=("bfloat16",),
    shapes=((4096, 4096), (14336, 4096)),
    rows=(64, 512, 2048),
    rounds=20,
    loss=((512, 128256, 4096),),
    training={"layers": 2},
    tokens=(512,),
)
#: For the tests: every line of this program, on the CPU.
TINY = Plan(
    shapes=((48, 64),),
    rows=(3, 17),
    rounds=2,
    loss=((37, 90, 64),),
    training={
        "layers": 1,
        "hidden": 64,
        "intermediate": 128,
        "heads": 4,
        "key_value_heads": 2,
        "vocabulary": 90,
    },
    tokens=(16,),
    steps=2,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer weights, rows and rounds")
    parser.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="folder for the JSON lines")
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)  # cpu: for the tests, tiny and untimed
    asked = parser.parse_args(arguments)
    reason = cannot_run(asked.device)
    if reason:
        print(f"error: {reason}", file=sys.stderr)
        return CANNOT_RUN
    # Advice on settings that are decided here, and on what the libraries themselves call.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    return measure(asked.device, QUICK if asked.quick else FULL, asked.out)


def cannot_run(device: str) -> str | None:
    """What is missing for a run on `device`, in one line."""
    needs = "this needs an NVIDIA GPU, a CUDA build of torch, triton, bitsandbytes and pefttool"
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return f"{needs}: {', '.join(missing)} cannot be imported"
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"{needs}: torch {torch.__version__} sees no CUDA device"
    if device.startswith("cuda"):
        from pefttool_kernels import machine

        return machine.triton_missing(torch.device(device))
    return None


def measure(name: str, plan: Plan, folder: Path) -> int:
    """Every part in its order: 0, or FAILED. What is written before a part fails is kept."""
    import torch
    from gpu_record import Record, machine

    device = torch.device(name)
    if device.type == "cpu":
        plan = TINY
    header = machine(device)
    record = Record(folder, header.get("card", {}).get("name", device.type))
    record.write("header", **header)
    for key, value in header.items():
        record.say(f"{key}: {value}")
    good = _try(correctness, plan, device, record)
    if good:
        for part in (products, loss, training):
            good = _try(part, plan, device, record) and good
    else:
        record.say("\nnothing was timed: a kernel computes wrong numbers on this card")
    record.write("footer", **machine(device), good=good)
    record.say(f"\nplease send {record.path}")
    record.close()
    return 0 if good else FAILED


def _try(part: Part, plan: Plan, device: torch.device, record: Record) -> bool:
    """What `part` says, or False where it raises: a driver's error must not cost what was measured before it."""
    try:
        return part(plan, device, record)
    except Exception as raised:
        record.write("failure", part=part.__name__, problem=traceback.format_exc())
        record.say(f"{part.__name__} FAILED: {type(raised).__name__}: {raised}")
        return False


def correctness(plan: Plan, device: torch.device, record: Record) -> bool:
    """The self-test, with every tile. bitsandbytes' own results are shown, and not judged."""
    from gpu_products import launchers_run

    from pefttool_kernels.selftest import selftest

    record.say("\ncorrectness (compiles every kernel: minutes)")
    checks = selftest.run(device, every_tile=launchers_run(device))
    for check in checks:
        record.write("check", **check.record())
    for verdict in selftest.verdicts(checks):
        record.say(f"{verdict.backend:<14}{verdict.text}")
    for check in checks:
        if not check.ok:
            record.say(
                f"WRONG: {check.backend}: {check.label}: error {check.error}, allowed {check.allowed}"
                f" {check.problem or ''}".rstrip()
            )
    return all(check.ok for check in checks if check.backend != "bitsandbytes")


def products(plan: Plan, device: torch.device, record: Record) -> bool:
    """Forward and dX of every weight with every number of rows; False if one of ours is wrong."""
    import gpu_products
    import torch

    good = True
    for (kind, nested), dtype, (n, k) in itertools.product(plan.kinds, plan.dtypes, plan.shapes):
        stored = gpu_products.store(kind, nested, getattr(torch, dtype), n, k, device)
        for direction in gpu_products.DIRECTIONS:
            for m in plan.rows:
                case = gpu_products.Case(kind, nested, getattr(torch, dtype), n, k, m)
                results = gpu_products.run(case, direction, stored, plan.rounds)
                if m == plan.rows[0]:
                    record.say(f"\n{case.weight}, {direction}, milliseconds\n{gpu_products.header(results)}")
                record.say(gpu_products.line(results))
                for result in results:
                    record.write("product", **result.record())
                    good = good and not result.wrong
    return good


def loss(plan: Plan, device: torch.device, record: Record) -> bool:
    """A frozen output layer's cross-entropy, forward and dX."""
    import loss as language_model_loss
    import torch

    for tokens, vocabulary, hidden in plan.loss:
        record.say(f"\ncross-entropy, forward and dX, bfloat16, {vocabulary} words, {hidden} wide")
        record.say(language_model_loss.header())
        for result in language_model_loss.run(tokens, vocabulary, hidden, plan.rounds, device, torch.bfloat16):
            record.write("loss", **result.record())
            record.say(language_model_loss.line(result))
    return True


def training(plan: Plan, device: torch.device, record: Record) -> bool:
    """Whole training steps of a small Llama with large layers. Left out, and said so, without peft or transformers."""
    missing = [name for name in NEEDED_FOR_TRAINING if importlib.util.find_spec(name) is None]
    if missing:
        record.write("skipped", part="training", reason=f"{', '.join(missing)} cannot be imported")
        record.say(f"\ntraining steps left out: they need {', '.join(missing)}")
        return True
    import gpu_training
    import torch

    shape = gpu_training.Shape(**plan.training)
    record.say(f"\ntraining steps, nf4, LoRA of rank {gpu_training.RANK}, recomputed activations, {shape}")
    record.say(gpu_training.header())
    for step in gpu_training.run(shape, plan.tokens, plan.steps, device, torch.bfloat16):
        record.write("step", shape=vars(shape), **step.record())
        record.say(gpu_training.line(step))
    return True


Part = Callable[[Plan, "torch.device", "Record"], bool]

if __name__ == "__main__":
    sys.exit(main())
