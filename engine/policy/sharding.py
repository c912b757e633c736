"""The optimizer's state as rectangles of tensors with Hugging Face names, for checkpoints that fit every layout.

On each data-parallel rank, Megatron's distributed optimizer holds a flat range of each local parameter: of the fp32
weights and of Adam's two moments. A flat range of a row-major matrix is at most three rectangles: the rest of a row,
whole rows, the start of a row. Once q, k and v (and gate and up) are separated, each rectangle has a known place in a
tensor whose shape is equal in all layouts. So each rank saves its own rectangles and nothing is gathered. A job with
other tensor-, pipeline- or data-parallel sizes reads other rectangles of the same tensors. The model's weights are not
saved: they are the fp32 weights, rounded.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing import ShardedTensor
from ralign.engine.policy import hf
from ralign.engine.policy.model import PackedGPT
from ralign.engine.policy.param_names import ParamMap
from ralign.engine.runtime.cluster import Cluster
from ralign.engine.runtime.megatron_internals import owned_ranges
from torch import Tensor

STATES = ("param", "exp_avg", "exp_avg_sq")  # Megatron's names: fp32 weights, first and second moment


@dataclass(kw_only=True, frozen=True)
class Part:
    """A block of rows of a local parameter: this rank's shard of one Hugging Face tensor.

    Attributes:
        name: the Hugging Face tensor.
        start, stop: the block's range in the flattened local parameter.
        width: columns of the block; 1 for a vector.
        global_shape: of the whole tensor, vocabulary padding included.
        offset: of the block's first element in the whole tensor.
    """

    name: str
    start: int
    stop: int
    width: int
    global_shape: tuple[int, ...]
    offset: tuple[int, ...]


def parts(cluster: Cluster, parameter: Tensor, mapping: ParamMap) -> Iterator[Part]:
    """The Hugging Face tensors that a local parameter is stacked from, in order."""
    width = parameter.shape[1] if parameter.ndim == 2 else 1
    start = 0
    for name, num_rows in zip(mapping.hf, mapping.local_rows(cluster.tp_size), strict=True):
        local = [num_rows, *parameter.shape[1:]]
        shape, offset = list(local), [0] * len(local)
        if mapping.split_dim is not None:
            shape[mapping.split_dim] *= cluster.tp_size
            offset[mapping.split_dim] = cluster.tp_rank * local[mapping.split_dim]
        stop = start + num_rows * width
        yield Part(
            name=name,
            start=start,
            stop=stop,
            width=width,
            global_shape=tuple(shape),
            offset=tuple(offset),
        )
        start = stop


def rectangles(start: int, stop: int, width: int) -> Iterator[tuple[int, int, int, int]]:
    """The flat range [start, stop) of a row-major matrix as at most three (row, column, rows, columns)."""
    while start < stop:
        row, column = divmod(start, width)
        if column or stop - start < width:
            num_rows, num_columns = 1, min(width - column, stop - start)
        else:
            num_rows, num_columns = (stop - start) // width, width
        yield row, column, num_rows, num_columns
        start += num_rows * num_columns


def optimizer_shards(optimizer) -> Iterator[tuple[Tensor, int, int, dict[str, Tensor]]]:
    """(parameter, start, stop, state) for each flat range of a local parameter in this rank's optimizer.

    `state` has `STATES`, fp32 [stop - start] each, and Adam's `step`, in the optimizer's own memory. Before the first
    update, the moments are made as zeros.
    """
    for distributed in optimizer.chained_optimizers:
        for parameter, start, stop, main in owned_ranges(distributed):
            moments = distributed.optimizer.state[main]
            if not moments:
                moments["step"] = torch.zeros((), dtype=torch.float32)
                moments.update({name: torch.zeros_like(main.data) for name in STATES[1:]})
            yield parameter, start, stop, {"param": main.data, **moments}


def sharded_optimizer_state(
    model: PackedGPT, cluster: Cluster, optimizer, prefix: str = ""
) -> dict[str, list[ShardedTensor]]:
    """This rank's rectangles of weights and moments, as views, by prefix, state and Hugging Face name."""
    maps = {parameter: (name, mapping) for name, parameter, mapping in hf.parameter_maps(model, cluster)}
    pieces: dict[str, list[ShardedTensor]] = {}
    for parameter, start, stop, state in optimizer_shards(optimizer):
        name, mapping = maps[parameter]
        tied_copy = name == "output_layer.weight" and model.share_embeddings_and_output_weights
        is_copy = tied_copy or (mapping.split_dim is None and cluster.tp_rank > 0)
        for part in parts(cluster, parameter, mapping):
            for kind in STATES:
                key = f"{prefix}{kind}/{part.name}"
                pieces.setdefault(f"{prefix}{kind}/{name}/{part.name}", []).extend(
                    _pieces(part, start, stop, state[kind].view(-1), key, int(is_copy))
                )
    return pieces


def _pieces(
    part: Part, start: int, stop: int, flat: Tensor, key: str, replica_id: int
) -> Iterator[ShardedTensor]:
    """The rectangles of one part inside the owned range; `flat` holds the range's values."""
    first, last = max(start, part.start), min(stop, part.stop)
    for row, column, num_rows, num_columns in rectangles(first - part.start, last - part.start, part.width):
        at = part.start + row * part.width + column - start
        shape = (num_rows, num_columns)[: len(part.global_shape)]
        yield ShardedTensor(
            key=key,
            data=flat[at : at + num_rows * num_columns].view(shape),
            dtype=flat.dtype,
            local_shape=shape,
            global_shape=part.global_shape,
            global_offset=tuple(o + i for o, i in zip(part.offset, (row, column), strict=False)),
            axis_fragmentations=None,  # rectangles of any size
            replica_id=replica_id,
        )


@torch.no_grad()
def identity(model: PackedGPT, cluster: Cluster) -> str:
    """A hash of the weights, 16 hexadecimal digits; padding rows of the vocabulary count as zero.

    Each bit pattern is weighted by its position in the whole tensor and added modulo 2^64, so that the result does not
    depend on how the tensors are split over the ranks.
    """
    total = torch.zeros((), dtype=torch.int64, device=cluster.device)
    for name, parameter, mapping in hf.parameter_maps(model, cluster):
        tied_copy = name == "output_layer.weight" and model.share_embeddings_and_output_weights
        if (
            cluster.dp_rank
            or cluster.cp_rank
            or (tied_copy and cluster.pp_rank)
            or (mapping.split_dim is None and cluster.tp_rank)
        ):
            continue
        words = parameter.data.reshape(-1).view(torch.int16 if parameter.element_size() == 2 else torch.int32)
        for part in parts(cluster, parameter, mapping):
            total += _weighted_sum(words[part.start : part.stop], part)
    dist.all_reduce(total)
    return f"{int(total) % 2**64:016x}"


def _weighted_sum(words: Tensor, part: Part, chunk_size: int = 1 << 22) -> Tensor:
    row_stride = part.global_shape[1] if len(part.global_shape) == 2 else 1
    origin = part.offset[0] * row_stride + (part.offset[1] if len(part.offset) == 2 else 0)
    origin += zlib.crc32(part.name.encode())
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for start in range(0, words.numel(), chunk_size):
        chunk = words[start : start + chunk_size].long()
        index = torch.arange(start, start + chunk.numel(), device=words.device)
        place = origin + index // part.width * row_stride + index % part.width
        total += (chunk * (place * 2654435761 + 1)).sum()
    return total
