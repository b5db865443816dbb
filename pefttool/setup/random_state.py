"""The state of every random generator that training may draw from, as text: no pickle, and ranks can exchange it."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor


def seed(number: int) -> None:
    """All of them: what a plugin draws from Python or NumPy is a part of the run as much as PyTorch's draws."""
    import numpy
    import torch

    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)


def capture() -> str:
    """PyTorch's (of the CPU, of each CUDA device, of Apple's GPU), Python's and NumPy's, as JSON."""
    import numpy
    import torch

    drawn: Any = numpy.random.get_state(legacy=True)
    name, keys, position, has_gauss, gauss = drawn
    version, internal, following = random.getstate()
    return json.dumps(
        {
            "cpu": _text(torch.get_rng_state()),
            "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else [],
            "mps": _text(torch.mps.get_rng_state()) if torch.backends.mps.is_available() else None,
            "python": [version, list(internal), following],
            "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        }
    )


def restore(text: str) -> None:
    """Put back what `capture` found: CUDA's only on as many devices as there were, Apple's where there is one."""
    import numpy
    import torch

    state: dict[str, Any] = json.loads(text)
    torch.set_rng_state(_tensor(state["cpu"]))
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_tensor(part) for part in state["cuda"]])
    if state.get("mps") and torch.backends.mps.is_available():  # older checkpoints have none
        torch.mps.set_rng_state(_tensor(state["mps"]))
    version, internal, following = state["python"]
    random.setstate((version, tuple(internal), following))
    name, keys, position, has_gauss, gauss = state["numpy"]
    numpy.random.set_state((name, numpy.array(keys, dtype=numpy.uint32), position, has_gauss, gauss))


def of_ranks(accelerator: Accelerator) -> list[str]:
    """`capture` of every process, in the order of ranks: all of them must call it."""
    own = capture()
    if accelerator.num_processes == 1:
        return [own]
    import torch

    device = accelerator.device
    data = torch.frombuffer(bytearray(own.encode()), dtype=torch.uint8).to(device)
    sizes: list[int] = accelerator.gather(torch.tensor([len(data)], device=device)).tolist()
    padded = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    padded[: len(data)] = data
    found: Tensor = accelerator.gather(padded).cpu().view(len(sizes), -1)
    return [bytes(found[rank, :size].tolist()).decode() for rank, size in enumerate(sizes)]


def _text(state: Tensor) -> str:
    return bytes(state.tolist()).hex()


def _tensor(text: str) -> Tensor:
    import torch

    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)


class RandomState:
    """What a step may draw from, to be gone back to: PyTorch on the CPU and the device that computes, Python, NumPy.

    Of one process and for a moment; `random_state` has what is stored.
    """

    def __init__(self, device: str) -> None:
        import numpy
        import torch

        self.others = random.getstate(), numpy.random.get_state(legacy=True)
        self.device = torch.device(device)
        self.states = [torch.get_rng_state()]
        if self.device.type in ("cuda", "mps"):
            self.states.append(torch.get_device_module(self.device).get_rng_state(self.device))

    def restore(self) -> None:
        import numpy
        import torch

        random.setstate(self.others[0])
        numpy.random.set_state(self.others[1])
        torch.set_rng_state(self.states[0])
        for state in self.states[1:]:
            torch.get_device_module(self.device).set_rng_state(state, self.device)
