"""What each knob costs and gains: LoRA on SmolLM2-135M, the trainer's own step; simulated memory, measured time.

python benchmarks/knobs.py                              4 rows of 256 tokens, base in bfloat16
python benchmarks/knobs.py --quantize nf4 --only none recompute --rounds 3

Every variant is a process of its own; they take turns. What only a CUDA device can do is simulated for one, not timed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

VARIANTS: dict[str, tuple[str, ...]] = {
    "none": (),
    "recompute": ("train.gradient_checkpointing=non-reentrant",),
    "recompute, reentrant": ("train.gradient_checkpointing=reentrant",),
    "8-bit AdamW": ("train.optimizer=adamw_8bit",),
    "SGD": ("train.optimizer=sgd",),
    "compile": ("train.compile=true",),
    "offload": ("memory.offload=[activations]",),
    "offload + recompute": ("memory.offload=[activations]", "train.gradient_checkpointing=non-reentrant"),
}
WARM = 2
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of a process, after the first two")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quantize", default=None)
    parser.add_argument("--adapter", default="lora")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--simulate", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.variant:
        job = simulated if arguments.simulate else measured
        print(json.dumps(job(arguments)))
        return
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for _ in range(arguments.rounds):
        for name, found in results.items():
            if "offload" not in name:
                found.append(process("--variant", name))
    columns = f"{'seconds a step':>15}{'of CPU time':>13}{'first':>8}{'CPU MiB':>9}{'CUDA MiB':>10}"
    print(f"{'':24}{columns}   (MiB are simulated)")
    for name, found in results.items():
        peaks = process("--variant", name, "--simulate")
        times = [median(run[key] for run in found) if found else float("nan") for key in ("seconds", "busy", "first")]
        cpu = f"{peaks['cpu']:.0f}" if "cpu" in peaks else "-"
        print(f"{name:<24}{times[0]:>15.3f}{times[1]:>13.3f}{times[2]:>8.1f}{cpu:>9}{peaks['cuda']:>10.0f}", flush=True)


def process(*more: str) -> Any:
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], *more], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def planned(arguments: argparse.Namespace, device: str) -> Any:
    """The plan of this variant; for CUDA as if there were a device."""
    from pefttool.config import recipe, registry
    from pefttool.setup import plan

    known = registry.build()
    flags = {
        "model": "example:smollm2-135m-instruct",
        "quantize": arguments.quantize,
        "adapter.name": arguments.adapter,
        "task.name": "chat",
        "data.train": "example:chatterbot-english",
        "train.sequence_length": arguments.tokens,
    }
    document = recipe.combine({}, {k: v for k, v in flags.items() if v is not None}, VARIANTS[arguments.variant])
    resolved = recipe.resolve(document, known)
    made = plan.make(replace(resolved, memory=resolved.memory.model_copy(update={"offload": ()})), known)
    return replace(
        made, recipe=replace(made.recipe, memory=resolved.memory), choice=replace(made.choice, device=device)
    )


def simulated(arguments: argparse.Namespace) -> dict[str, float]:
    """MiB at the peak of a step."""
    from pefttool.forecast import simulate

    kinds = ("cuda",) if "offload" in arguments.variant else ("cpu", "cuda")
    plans = {kind: planned(arguments, kind) for kind in kinds}
    return {
        kind: simulate.peak(made, made.setting(), arguments.rows, arguments.tokens).peak_bytes / MIB
        for kind, made in plans.items()
    }


def measured(arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, those of them that the process was given by a busy machine, and of the first step."""
    from pefttool.api.values import Row
    from pefttool.data.encoding import Encoded
    from pefttool.forecast import simulate
    from pefttool.inference import packing
    from pefttool.inference.predictor import Predictor
    from pefttool.setup import allocator, attach, base, precision, techniques
    from pefttool.training import optimisation

    allocator.keep_freed_memory()
    made = planned(arguments, "cpu")
    loaded = base.load(made, ())
    examples = tuple(simulate.filler(made, loaded.setting, arguments.rows, arguments.tokens))
    rows = Encoded(examples, (Row({}),) * len(examples), ())
    loaded = packing.settle(made, loaded, loaded.model, rows, lambda notice: None)
    adapted = attach.attach(loaded.model, made.adapter, made.recipe.adapter_options, loaded.facts)
    techniques.apply(made, adapted)
    optimizer = optimisation.make_optimizer(adapted, made.adapter, made.recipe.train)
    batch = made.task.collate(examples, loaded.processor, loaded.setting)
    weight = float(sum(example["weight"] for example in examples))
    seconds, busy = [], []
    for _ in range(WARM + arguments.steps):
        began, working = time.perf_counter(), time.process_time()
        predictor = Predictor.of(made, loaded, adapted.model.train())
        scaler, parameters = precision.grad_scaler(made.choice), list(adapted.parameters().values())
        update = optimisation.Update(optimizer, scaler, parameters, made.recipe.train.max_grad_norm)
        optimisation.optimizer_step(predictor, update, [(batch, True)], weight)
        seconds.append(time.perf_counter() - began)
        busy.append(time.process_time() - working)
    return {"seconds": median(seconds[WARM:]), "busy": median(busy[WARM:]), "first": seconds[0]}


if __name__ == "__main__":
    main()
