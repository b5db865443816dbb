"""The weights and the graph of an ONNX file, read without the onnx package (and protobuf, and ml_dtypes with it).

ONNX is protobuf, whose wire format is a list of (field number, wire type, value): a varint, eight bytes, a length and
as many bytes, or four bytes. Field numbers are those of onnx.proto3, which never change.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

FLOAT = 1
MODEL_GRAPH = 7
GRAPH_NODE, GRAPH_INITIALIZER = 1, 5
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE = 1, 2, 4
TENSOR_DIMS, TENSOR_DATA_TYPE, TENSOR_NAME, TENSOR_RAW_DATA = 1, 2, 8, 9


@dataclass(frozen=True)
class Node:
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """`tensors` are the initialisers of type float32, by name; `nodes` in the order in which they are computed."""

    tensors: dict[str, np.ndarray]
    nodes: tuple[Node, ...]


def read(content: bytes) -> Graph:
    """The graph of an ONNX model whose tensors are stored inside the file, as raw little-endian bytes."""
    (graph,) = (value for number, value in _fields(memoryview(content)) if number == MODEL_GRAPH)
    tensors, nodes = {}, []
    for number, value in _fields(graph):
        if number == GRAPH_INITIALIZER:
            name, tensor = _tensor(value)
            if tensor is not None:
                tensors[name] = tensor
        elif number == GRAPH_NODE:
            nodes.append(_node(value))
    return Graph(tensors, tuple(nodes))


def _node(message: memoryview) -> Node:
    found: dict[int, list[str]] = {NODE_INPUT: [], NODE_OUTPUT: [], NODE_OP_TYPE: []}
    for number, value in _fields(message):
        if number in found:
            found[number].append(bytes(value).decode())
    return Node("".join(found[NODE_OP_TYPE]), tuple(found[NODE_INPUT]), tuple(found[NODE_OUTPUT]))


def _tensor(message: memoryview) -> tuple[str, np.ndarray | None]:
    """(name, values); None for what is not float32."""
    import numpy as np

    dims: list[int] = []
    name, kind, raw = "", 0, memoryview(b"")
    for number, value in _fields(message):
        if number == TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else list(_packed(value))
        elif number == TENSOR_DATA_TYPE:
            kind = value
        elif number == TENSOR_NAME:
            name = bytes(value).decode()
        elif number == TENSOR_RAW_DATA:
            raw = value
    if kind != FLOAT:
        return name, None
    return name, np.frombuffer(raw, dtype="<f4").reshape(dims)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: an integer for varints, else bytes."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at}: this is no protobuf message")
        yield number, message[at : at + size]
        at += size


def _packed(message: memoryview) -> Iterator[int]:
    at = 0
    while at < len(message):
        value, at = _varint(message, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
