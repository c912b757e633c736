"""Pinned host memory for tensors that are offloaded, without losses to rounding.

torch's allocator of pinned memory rounds every request up to a power of two: 46 GiB of optimizer state take up to
64 GiB. Here tensors are placed side by side in blocks whose size is a power of two.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

BLOCK_BYTES = 1 << 30
_ALIGNMENT = 64  # bytes; copies of aligned memory are the fastest


class HostMemory:
    """Allocates tensors in host memory that live as long as this object."""

    def __init__(self, *, pin: bool, block_bytes: int = BLOCK_BYTES):
        """`pin`: for copies to and from a GPU. Without it, every tensor is an allocation of its own."""
        self._pin, self._block_bytes = pin, block_bytes
        self._blocks: list[Tensor] = []
        self._used: list[int] = []  # bytes, from the start of each block

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised, contiguous tensor in the first block that has room."""
        size = math.prod(shape) * dtype.itemsize
        if not self._pin:
            return torch.empty(shape, dtype=dtype)
        padded = -(-size // _ALIGNMENT) * _ALIGNMENT
        block = next((i for i, used in enumerate(self._used) if used + padded <= len(self._blocks[i])), None)
        if block is None:
            block = self._add_block(padded)
        start = self._used[block]
        self._used[block] += padded
        return self._blocks[block][start : start + size].view(dtype).view(*shape)

    def _add_block(self, least_bytes: int) -> int:
        size = self._block_bytes
        while size < least_bytes:
            size *= 2
        self._blocks.append(torch.empty(size, dtype=torch.uint8, pin_memory=True))
        self._used.append(0)
        return len(self._blocks) - 1
