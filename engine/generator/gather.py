"""The gather path: copies the trainer's weights into an engine of another layout (pipeline stages, another TP size).

No whole tensor is assembled. Both sides know the rows and columns of every shard, so each overlap of a trainer's shard
with an engine's shard is one rectangular piece, which its source sends directly to its target; a rank copies a piece
that it holds itself. Pieces are cut to size and sent in buckets, one all-to-all each: while one bucket is unpacked, the
next is in transfer. The staging memory is one buffer of `bucket_bytes`, allocated for an update and freed after it;
nothing else is allocated.

A tensor is described along its split axis: `parts` are the global sizes of the matrices stacked there (q, k, v); tensor
parallelism cuts each of them evenly.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

import torch
import torch.distributed as dist
from ralign.engine.policy import hf
from ralign.engine.policy.model import PackedGPT
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.errors import UserError
from torch import Tensor

NUM_SLOTS = 2  # buckets in transfer at once


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """How one tensor is cut by tensor parallelism.

    Attributes:
        parts: global sizes along the split axis of the matrices that are stacked there.
        split_dim: 0 or 1, or None where every rank holds all of it.
        width: size of the other axis; 1 for a vector.
    """

    parts: tuple[int, ...]
    split_dim: int | None
    width: int

    def spans(self, tp_size: int, tp_rank: int) -> list[tuple[int, int, int]]:
        """(global start, local start, length) along the split axis of what a rank holds, part by part."""
        if self.split_dim is None:
            tp_size, tp_rank = 1, 0
        spans, first, local = [], 0, 0
        for size in self.parts:
            length = size // tp_size
            spans.append((first + tp_rank * length, local, length))
            first, local = first + size, local + length
        return spans


class Piece(NamedTuple):
    """A rectangle of one tensor, from a rank's shard to another's, with its place in both."""

    name: str
    source: int
    target: int
    source_row: int
    source_column: int
    target_row: int
    target_column: int
    num_rows: int
    num_columns: int

    @property
    def size(self) -> int:
        return self.num_rows * self.num_columns

    def of_source(self, shard: Tensor) -> Tensor:
        return _matrix(shard)[
            self.source_row : self.source_row + self.num_rows,
            self.source_column : self.source_column + self.num_columns,
        ]

    def of_target(self, shard: Tensor) -> Tensor:
        return _matrix(shard)[
            self.target_row : self.target_row + self.num_rows,
            self.target_column : self.target_column + self.num_columns,
        ]


def _matrix(shard: Tensor) -> Tensor:
    return shard if shard.ndim == 2 else shard.view(-1, 1)


@dataclass(frozen=True, kw_only=True)
class World:
    """The trainer's coordinates of each rank, and the sharding and pipeline stage of each tensor."""

    coordinates: tuple[tuple[int, int], ...]  # (pipeline rank, tensor rank) of each rank of the job
    tensor: int  # the trainer's tensor-parallel size
    catalog: Mapping[str, tuple[int, Sharding]]  # vLLM's name -> (stage, sharding)
    generate_tensor: int
    gpus_per_node: int = 8


def describe(model: PackedGPT, cluster: Cluster, generate_tensor: int) -> World:
    """The world, from one exchange of names and sizes; collective."""
    describes = cluster.tp_rank == cluster.dp_rank == cluster.cp_rank == 0
    own = dict(shardings(model, cluster)) if describes else None
    everyone: list = [None] * cluster.world_size
    dist.all_gather_object(everyone, (cluster.pp_rank, cluster.tp_rank, own))
    catalog: dict[str, tuple[int, Sharding]] = {}
    for stage, _, tensors in sorted((x for x in everyone if x[2] is not None), key=lambda x: x[0]):
        for name, sharding in tensors.items():
            catalog.setdefault(name, (stage, sharding))  # a tied head's copy on the last stage is not needed
    return World(
        coordinates=tuple((stage, rank) for stage, rank, _ in everyone),
        tensor=cluster.tp_size,
        catalog=catalog,
        generate_tensor=generate_tensor,
    )


def shardings(model: PackedGPT, cluster: Cluster) -> Iterator[tuple[str, Sharding]]:
    """(vLLM's name, sharding) of every parameter of this pipeline stage."""
    for _, parameter, mapping in hf.parameter_maps(model, cluster):
        if mapping.split_dim == 1:
            num_rows, num_columns = parameter.shape
            sharding = Sharding(parts=(num_columns * cluster.tp_size,), split_dim=1, width=num_rows)
        else:
            width = parameter.shape[1] if parameter.ndim == 2 else 1
            sharding = Sharding(parts=mapping.rows, split_dim=mapping.split_dim, width=width)
        yield mapping.vllm, sharding


def pieces(world: World, max_size: int) -> Iterator[Piece]:
    """Every piece of an update of all engines, tensor by tensor, of at most `max_size` elements.

    If several data-parallel ranks hold the same shard, the source is the target itself, else one of its node.
    """
    holders: dict[tuple[int, int], list[int]] = {}
    for rank, coordinates in enumerate(world.coordinates):
        holders.setdefault(coordinates, []).append(rank)
    num_ranks = len(world.coordinates)
    for name, (stage, sharding) in world.catalog.items():
        streams = []  # taken in turns, so that all ranks are busy in each bucket
        for target in range(num_ranks):
            wanted = sharding.spans(world.generate_tensor, target % world.generate_tensor)
            found = 0
            for tp_rank in range(world.tensor if sharding.split_dim is not None else 1):
                candidates = holders[stage, tp_rank]
                if sharding.split_dim is None:  # every tensor rank of the stage has it
                    candidates = [rank for t in range(world.tensor) for rank in holders[stage, t]]
                source = _nearest(candidates, target, world.gpus_per_node)
                for span in _overlaps(sharding.spans(world.tensor, tp_rank), wanted):
                    found += span[2]
                    streams.append(_cut(name, sharding, source, target, span, max_size))
            assert found == sum(length for *_, length in wanted), f"{name}: no rank holds a part of it"
        for turn in zip_longest(*streams):
            yield from (piece for piece in turn if piece is not None)


def _nearest(candidates: list[int], target: int, gpus_per_node: int) -> int:
    if target in candidates:
        return target
    near = [rank for rank in candidates if rank // gpus_per_node == target // gpus_per_node]
    return (near or candidates)[target % len(near or candidates)]


def _overlaps(held: Iterable[tuple[int, int, int]], wanted: list[tuple[int, int, int]]):
    """(source start, target start, length) along the split axis, where a held span meets a wanted one."""
    for held_start, source, held_length in held:
        for wanted_start, target, wanted_length in wanted:
            start = max(held_start, wanted_start)
            stop = min(held_start + held_length, wanted_start + wanted_length)
            if start < stop:
                yield source + start - held_start, target + start - wanted_start, stop - start


def _cut(name: str, sharding: Sharding, source: int, target: int, span, max_size: int) -> Iterator[Piece]:
    """A span as pieces of whole rows."""
    source_start, target_start, length = span
    by_columns = sharding.split_dim == 1
    num_rows, num_columns = (sharding.width, length) if by_columns else (length, sharding.width)
    if source == target:
        step = num_rows  # copied directly, not staged
    else:
        step = max_size // num_columns
        if step == 0:
            raise UserError(
                f"memory.bucket_mib is too small: one row of {name} ({num_columns} numbers) does not fit a "
                f"quarter of it ({max_size} numbers)"
            )
    for row in range(0, num_rows, step):
        rows = min(step, num_rows - row)
        corner = (row, source_start, row, target_start) if by_columns else (
            source_start + row, 0, target_start + row, 0)  # fmt: skip
        yield Piece(name, source, target, *corner, rows, num_columns)


@dataclass(kw_only=True)
class Bucket:
    """One all-to-all as a rank sees it: pieces in the order of the peers, elements to and from each."""

    sends: list[Piece] = field(default_factory=list)
    receives: list[Piece] = field(default_factory=list)
    send_sizes: list[int] = field(default_factory=list)
    receive_sizes: list[int] = field(default_factory=list)


def schedule(world: World, rank: int, max_size: int) -> tuple[list[Piece], list[Bucket]]:
    """(pieces that this rank copies, its part of each bucket): in no bucket does any rank send or receive more
    than `max_size` elements. A piece goes into the first bucket where both its ends have room. Every rank
    computes the same cut, so all have as many buckets."""
    num_ranks = len(world.coordinates)
    copies: list[Piece] = []
    mine: list[list[Piece]] = []  # by bucket
    sent: list[list[int]] = []  # by bucket and rank, as is `received`
    received: list[list[int]] = []
    can_send, can_receive = [0] * num_ranks, [0] * num_ranks  # each rank's first bucket that is not full
    for piece in pieces(world, max_size):
        source, target = piece.source, piece.target
        if source == target:
            if target == rank:
                copies.append(piece)
            continue
        number = max(can_send[source], can_receive[target])
        while number < len(mine):
            send_full = sent[number][source] + piece.size > max_size
            receive_full = received[number][target] + piece.size > max_size
            if not (send_full or receive_full):
                break
            can_send[source] += send_full and can_send[source] == number
            can_receive[target] += receive_full and can_receive[target] == number
            number += 1
        else:
            mine.append([])
            sent.append([0] * num_ranks)
            received.append([0] * num_ranks)
        sent[number][source] += piece.size
        received[number][target] += piece.size
        if rank in (source, target):
            mine[number].append(piece)
    return copies, [_bucket(part, rank, num_ranks) for part in mine]


def _bucket(mine: list[Piece], rank: int, num_ranks: int) -> Bucket:
    bucket = Bucket()
    for peer in range(num_ranks):
        out = [piece for piece in mine if piece.source == rank and piece.target == peer]
        into = [piece for piece in mine if piece.target == rank and piece.source == peer]
        bucket.sends += out
        bucket.receives += into
        bucket.send_sizes.append(sum(piece.size for piece in out))
        bucket.receive_sizes.append(sum(piece.size for piece in into))
    return bucket


class WeightGather:
    """Updates an engine's own tensors from the trainer's; `update` is collective over the job."""

    def __init__(
        self,
        world: World,
        rank: int,
        source: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        bucket_bytes: int,
    ):
        """`source`, `target`: this rank's shards in trainer and engine, by vLLM's names."""
        some = next(iter(source.values()))
        assert all(x.dtype == some.dtype for x in (*source.values(), *target.values())), (
            "all tensors need one dtype"
        )
        self._source, self._target = dict(source), dict(target)
        self._dtype, self._device = some.dtype, some.device
        # Two slots, each with a part to send and a part to receive.
        self._max_size = bucket_bytes // (2 * NUM_SLOTS * some.element_size())
        self._copies, self._buckets = schedule(world, rank, self._max_size)
        self.num_buckets = len(self._buckets)
        self.num_received_bytes = sum(sum(b.receive_sizes) for b in self._buckets) * some.element_size()

    @torch.no_grad()
    def update(self) -> None:
        """Make the engine's tensors equal to the trainer's."""
        if self._buckets:
            # Only as large as the largest bucket needs.
            largest = max(max(sum(b.send_sizes), sum(b.receive_sizes)) for b in self._buckets)
            staging = torch.empty(
                2 * NUM_SLOTS, min(self._max_size, max(largest, 1)), dtype=self._dtype, device=self._device
            )
        in_transfer: list[tuple[Bucket, Tensor, dist.Work]] = []
        for number, bucket in enumerate(self._buckets):
            outgoing, incoming = staging[2 * (number % NUM_SLOTS)], staging[2 * (number % NUM_SLOTS) + 1]
            in_transfer.append((bucket, incoming, self._start(bucket, outgoing, incoming)))
            if len(in_transfer) == NUM_SLOTS:
                self._finish(*in_transfer.pop(0))
        for piece in self._copies:  # while the last buckets are in transfer
            piece.of_target(self._target[piece.name]).copy_(piece.of_source(self._source[piece.name]))
        for transfer in in_transfer:
            self._finish(*transfer)

    def _start(self, bucket: Bucket, outgoing: Tensor, incoming: Tensor) -> dist.Work:
        start = 0
        for piece in bucket.sends:
            block = piece.of_source(self._source[piece.name])
            outgoing[start : start + piece.size].view(block.shape).copy_(block)
            start += piece.size
        work = dist.all_to_all_single(
            incoming[: sum(bucket.receive_sizes)],
            outgoing[:start],
            bucket.receive_sizes,
            bucket.send_sizes,
            async_op=True,
        )
        assert work is not None
        return work

    def _finish(self, bucket: Bucket, incoming: Tensor, work: dist.Work) -> None:
        work.wait()
        start = 0
        for piece in bucket.receives:
            block = piece.of_target(self._target[piece.name])
            block.copy_(incoming[start : start + piece.size].view(block.shape))
            start += piece.size
