"""Checksums of tensors by value and place, independent of the layout.

Each 16- or 32-bit word is multiplied by a weight of its place in the whole tensor; sums wrap in 64 bits. The checksums
of shards add up to that of the whole tensor, so a trainer and an engine in different layouts are compared without
moving a tensor.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from ralign.engine.generator.gather import Sharding
from torch import Tensor

_MODULUS = 1 << 63
_CHUNK = 1 << 22


def checksums(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, int]:
    """The checksum of each tensor, taken as a whole."""
    return {name: checksum(tensor) for name, tensor in parameters}


def checksum(tensor: Tensor) -> int:
    """Checksum of a whole tensor."""
    rows = tensor.detach().reshape(tensor.shape[0], -1)
    return _block(rows, 0, 0, rows.shape[1])


def shard_checksum(tensor: Tensor, sharding: Sharding, tp_size: int, tp_rank: int) -> int:
    """A shard's part of the checksum of the whole tensor; a replicated tensor counts on rank 0 only."""
    if sharding.split_dim is None and tp_rank:
        return 0
    rows, total = tensor.detach().reshape(tensor.shape[0], -1), 0
    for start, local, length in sharding.spans(tp_size, tp_rank):
        if sharding.split_dim == 1:
            total += _block(rows[:, local : local + length], 0, start, sum(sharding.parts))
        else:
            total += _block(rows[local : local + length], start, 0, rows.shape[1])
    return total % _MODULUS


def _block(block: Tensor, first_row: int, first_column: int, width: int) -> int:
    """Checksum of a rectangle with this upper left corner in a tensor of `width` columns."""
    word = torch.int16 if block.element_size() == 2 else torch.int32
    total = torch.zeros((), dtype=torch.int64, device=block.device)
    step = max(1, _CHUNK // max(block.shape[1], 1))
    columns = torch.arange(first_column, first_column + block.shape[1], device=block.device)
    for start in range(0, block.shape[0], step):
        part = block[start : start + step].contiguous().view(word).long()
        rows = torch.arange(first_row + start, first_row + start + part.shape[0], device=block.device)
        places = rows[:, None] * width + columns
        total += (part * (places * 2654435761 + 1)).sum()
    return int(total) % _MODULUS


def add_up(
    checks: Mapping[str, int], ranks: Iterable[int], group: dist.ProcessGroup | None = None
) -> dict[str, int]:
    """Sums by name over the listed ranks of a group (collective), each counted once."""
    everyone: list = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, dict(checks), group=group)
    totals: dict[str, int] = {}
    for rank in ranks:
        for name, value in everyone[rank].items():
            totals[name] = (totals.get(name, 0) + value) % _MODULUS
    return totals
