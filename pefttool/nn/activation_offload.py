"""Activations in host memory between forward and backward: what autograd saves is copied out, and back when needed.

Weights never move: what the model holds itself (parameters, buffers, a quantiser's scales) is left where it is, and so
is what is small. A tensor that several operators save is copied out once.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pefttool.nn import placement
from pefttool.nn.tensors import held_by

if TYPE_CHECKING:
    from torch import nn

#: Bytes below which moving a tensor is not worth a copy.
SMALL = 1 << 16


class _Out:
    """A saved tensor's copy in host memory, and the storage that it was made from, as long as that lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.device = tensor.device
        self.origin = weakref.ref(tensor.untyped_storage())
        self.copy = placement.on_host(tensor)


#: What autograd keeps instead of a tensor: the copy, and the shape and strides that it was saved with.
Saved = tuple[_Out, torch.Size, tuple[int, ...]]


class Offload:
    """The two hooks around a model's forward pass; nothing is done where no gradients are wanted."""

    def __init__(self, model: nn.Module, smallest: int = SMALL) -> None:
        self.model, self.smallest = model, smallest
        self.stay: set[int] = set()
        self.out: weakref.WeakValueDictionary[Any, _Out] = weakref.WeakValueDictionary()
        self.entered: list[saved_tensors_hooks | None] = []

    def before(self, *_: Any) -> None:
        """Begin to move what is saved. What stays is looked up anew: weights may have been replaced since."""
        context = None
        if torch.is_grad_enabled():
            self.stay = {tensor.untyped_storage()._cdata for tensor in held_by(self.model)}
            context = saved_tensors_hooks(self.pack, self.unpack)
            context.__enter__()
        self.entered.append(context)

    def after(self, *_: Any) -> None:
        """End it, also where the forward pass failed."""
        context = self.entered.pop()
        if context is not None:
            context.__exit__(None, None, None)

    def pack(self, tensor: Tensor) -> Tensor | Saved:
        storage = tensor.untyped_storage()
        if storage.nbytes() < self.smallest or storage._cdata in self.stay:
            return tensor
        size, stride, offset = tensor.shape, tensor.stride(), tensor.storage_offset()
        if tensor.nbytes == storage.nbytes():  # all of its memory, in whatever shape: views of it share one copy
            tensor = tensor.detach().as_strided((tensor.numel(),), (1,), 0)
        key = (storage._cdata, tensor._version, tensor.dtype, tensor.shape, tensor.stride(), offset)
        out = self.out.get(key)
        if out is None or out.origin() is None:
            out = self.out[key] = _Out(tensor.detach())
        return out, size, stride

    def unpack(self, packed: Tensor | Saved) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        out, size, stride = packed
        back = placement.on_device(out.copy, out.device)
        return back.as_strided(size, stride) if back.shape != size else back


def install(model: nn.Module, smallest: int = SMALL) -> None:
    """Move what `model`'s forward passes save, from now on, into host memory."""
    offload = Offload(model, smallest)
    model.register_forward_pre_hook(offload.before)
    model.register_forward_hook(offload.after, always_call=True)
