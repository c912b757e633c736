"""Packs ragged samples into micro-batches and unpacks results: the typed interface of the C++ planner (csrc/).

`plan` assigns samples to the micro-batches of data-parallel ranks, under a hard limit of tokens. `materialise` builds
the flat tensors of micro-batches. `unpack` splits per-token results by sample. One plan serves every pass over its
batch: old and reference logprobs are computed on the micro-batches of the update.

M: micro-batches.  S: samples.  T: tokens, padding included.  R: response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ralign.engine.runtime.errors import UserError
from ralign.kernels import _packing
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Sample:
    """One prompt and response.

    Attributes:
        prompt_ids, response_ids: int64 [L], contiguous; the prompt is not empty.
        per_response_token: values of each response token (rollout logprobs, ...), fp32 [len(response_ids)].
        per_sample: values copied to every response token: floats (advantage, loss weight) or integers (group id).
    """

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    per_response_token: dict[str, np.ndarray]
    per_sample: dict[str, float | int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(kw_only=True, slots=True)
class PackedBatch:
    """One micro-batch: samples end to end, then padding as a separate sequence.

    A micro-batch without samples is padding only: it keeps the ranks in step and adds nothing to a loss.

    Attributes:
        input_ids, position_ids: int64 [T]; positions restart at 0 with each sequence.
        targets: int64 [T]; the response token that position t predicts, or IGNORE (-100).
        loss_mask: bool [T]; whether t predicts a response token.
        response_rows: int64 [R]; the positions that predict response tokens, in order.
        cu_seqlens: int32 [B + 1] starts of the sequences and T.
        max_seqlen: the longest sequence.
        per_token: [T] each; the value of a response token is at the position that predicts it. Floats are fp32 and 0
            elsewhere, integers int64 and -1 elsewhere.
        indices: int64 [S], in host memory; the indices of the samples.
        row_starts, row_counts: int64 [S], in host memory; each sample's first row and number of rows.
        packed_params: Megatron's form of cu_seqlens, cached for all layers and passes.
        loss_rows: the positions with a gradient, and those that only count in the metrics (see losses.py).
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    loss_mask: Tensor
    response_rows: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    per_token: dict[str, Tensor]
    indices: np.ndarray
    row_starts: np.ndarray
    row_counts: np.ndarray
    packed_params: object = field(default=None)
    loss_rows: tuple[Tensor, Tensor] | None = field(default=None)

    def unpack(self, per_token: Tensor) -> list[Tensor]:
        """[T] -> for each sample, in this batch's order, the values at its response tokens (views)."""
        rows = zip(self.row_starts.tolist(), self.row_counts.tolist(), strict=True)
        return [per_token[start : start + count] for start, count in rows]


@dataclass(kw_only=True, slots=True)
class Plan:
    """The samples of each micro-batch. All ranks have the same number of micro-batches; some may be empty.

    Attributes:
        indices: int64 [n], every sample once; micro-batch m has indices[offsets[m] : offsets[m + 1]], ascending.
        offsets: int64 [M + 1].
        dp_size: number of ranks; rank r has the r-th part of the micro-batches, in descending order of cost.
    """

    indices: np.ndarray
    offsets: np.ndarray
    dp_size: int

    def of_rank(self, rank: int) -> list[np.ndarray]:
        """Sample indices of each micro-batch of a rank (views)."""
        per_rank = (len(self.offsets) - 1) // self.dp_size
        bounds = self.offsets[rank * per_rank : (rank + 1) * per_rank + 1].tolist()
        return [self.indices[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    @property
    def micro_batches(self) -> list[list[np.ndarray]]:
        """micro_batches[rank][k]: sample indices."""
        return [self.of_rank(rank) for rank in range(self.dp_size)]


def plan(
    lengths: Sequence[int] | np.ndarray,
    *,
    token_budget: int,
    dp_size: int = 1,
    multiple: int = 1,
    pad_multiple: int = 1,
    cost: tuple[float, float] = (1.0, 0.0),
    balance: bool = True,
    groups: np.ndarray | None = None,
) -> Plan:
    """Assigns every sample to one micro-batch: as few as best-fit-decreasing needs, with balanced costs.

    If there are too few samples for every rank, some micro-batches are empty; `materialise` makes them padding only.
    The same input gives the same plan.

    Args:
        lengths: [n] tokens of each sample, at least 1; an array must be int64 and contiguous.
        token_budget: largest number of tokens in a micro-batch, padding included.
        dp_size: number of ranks.
        multiple: the number of micro-batches of a rank is a multiple of it (pipeline schedules).
        pad_multiple: `pad_multiple` of the later `materialise`.
        cost: (a, b): a sample of l tokens costs a·l + b·l² (`flops_cost`). The costs of ranks are balanced, and those
            of the micro-batches that ranks process at the same time, within the token budget.
        balance: False keeps the micro-batches of best-fit-decreasing.
        groups: int64 [n]; samples of one group stay on one rank, which limits the balance.

    Raises:
        UserError: a sample is empty or longer than the budget (the message names it), there are no samples, or an
            array has another type.
    """
    linear, quadratic = cost
    try:
        indices, offsets = _packing.plan(
            lengths if isinstance(lengths, np.ndarray) else np.array(lengths),
            token_budget=token_budget,
            pad_multiple=pad_multiple,
            dp_size=dp_size,
            multiple=multiple,
            linear=linear,
            quadratic=quadratic,
            balance=balance,
            groups=groups,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    return Plan(indices=indices, offsets=offsets, dp_size=dp_size)


def flops_cost(hf_config) -> tuple[float, float]:
    """(a, b) of `plan`: forward FLOPs of a dense decoder on l tokens are a·l + b·l².

    hf_config: the model's Hugging Face configuration. Two FLOPs per weight and token, including the output layer;
    causal attention reads half of the l² pairs, twice (scores and values).
    """
    hidden, num_heads = hf_config.hidden_size, hf_config.num_attention_heads
    head_dim = getattr(hf_config, "head_dim", None) or hidden // num_heads
    attention = hidden * head_dim * (2 * num_heads + 2 * hf_config.num_key_value_heads)
    layer = attention + 3 * hidden * hf_config.intermediate_size
    weights = hf_config.num_hidden_layers * layer + hidden * hf_config.vocab_size
    return 2.0 * weights, 2.0 * hf_config.num_hidden_layers * num_heads * head_dim


def materialise(
    samples: Sequence[Sample],
    micro_batches: Sequence[np.ndarray],
    *,
    pad_multiple: int = 1,
    device: torch.device | str = "cpu",
) -> list[PackedBatch]:
    """The flat tensors of micro-batches: samples[i] for i in micro_batches[m], T a multiple of `pad_multiple`.

    The tensors of all micro-batches are views of one tensor per kind. For a GPU they are written into pinned memory
    and copied asynchronously.

    Raises:
        UserError: there are no samples, or one has no prompt, values that do not fit its response, or arrays of other
            types (the message names it).
    """
    if not samples:
        raise UserError("there are no samples to pack")
    device = torch.device(device)
    indices = [i for batch in micro_batches for i in batch.tolist()]
    chosen = [_sample(samples, i) for i in indices]
    columns = _columns(chosen, indices, samples[0])
    sizes = np.array([len(batch) for batch in micro_batches], dtype=np.int64)
    prompts, responses = [s.prompt_ids for s in chosen], [s.response_ids for s in chosen]
    try:
        ragged = _packing.Ragged(indices, prompts, responses, sizes, pad_multiple)
        layout = _Layout(*ragged.layout())
        buffers = layout.empty_buffers(columns, pin_memory=device.type == "cuda")
        ragged.write({name: x.numpy() for name, x in buffers.items()}, columns)
    except ValueError as error:
        raise UserError(str(error)) from None
    flat = {name: x.to(device, non_blocking=True) for name, x in buffers.items()}
    return layout.cut(flat, list(columns), sizes, np.array(indices, dtype=np.int64))


def to_device(host: np.ndarray, device: torch.device) -> Tensor:
    """A tensor on the device. A copy to a GPU uses pinned memory, so the host does not wait for queued kernels."""
    tensor = torch.from_numpy(host)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def unpack(batches: Sequence[PackedBatch], results: Sequence[Tensor]) -> dict[int, np.ndarray]:
    """The inverse of `materialise`: fp32 [T] of each micro-batch -> the values at each sample's response tokens.

    Returns {sample index: fp32 [its response tokens]} in the order of the samples, independent of the plan.
    """
    indices, starts, counts = (
        np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("indices", "row_starts", "row_counts")
    )
    order = np.argsort(indices, kind="stable")
    ends = np.cumsum(counts[order])
    targets = np.empty_like(ends)
    targets[order] = ends - counts[order]
    out = np.empty(int(counts.sum()), dtype=np.float32)
    sizes = np.array([len(batch.indices) for batch in batches], dtype=np.int64)
    host = [result.detach().cpu().contiguous().numpy() for result in results]
    try:
        _packing.unpack(host, sizes, starts, counts, targets, out)
    except ValueError as error:
        raise UserError(str(error)) from None
    parts = zip(indices[order].tolist(), (ends - counts[order]).tolist(), ends.tolist(), strict=True)
    return {index: out[start:end] for index, start, end in parts}


_TYPES = {
    "input_ids": torch.int64,
    "targets": torch.int64,
    "position_ids": torch.int64,
    "loss_mask": torch.bool,
    "response_rows": torch.int64,
    "cu_seqlens": torch.int32,
}


@dataclass(slots=True)
class _Layout:
    """csrc/materialise.h, Layout."""

    token_offsets: np.ndarray
    cu_offsets: np.ndarray
    row_starts: np.ndarray
    row_offsets: np.ndarray
    max_seqlens: np.ndarray

    def empty_buffers(self, columns: dict, *, pin_memory: bool) -> dict[str, Tensor]:
        num_tokens = int(self.token_offsets[-1])
        sizes = {"response_rows": int(self.row_offsets[-1]), "cu_seqlens": int(self.cu_offsets[-1])}
        types = _TYPES | {name: _column_type(values) for name, values in columns.items()}
        return {
            name: torch.empty(sizes.get(name, num_tokens), dtype=dtype, pin_memory=pin_memory)
            for name, dtype in types.items()
        }

    def cut(self, flat: dict[str, Tensor], columns: list[str], sizes: np.ndarray, indices: np.ndarray):
        ends = np.concatenate([[0], np.cumsum(sizes)])
        tokens, cu_seqlens = np.diff(self.token_offsets).tolist(), np.diff(self.cu_offsets).tolist()
        lengths = {"response_rows": np.diff(self.row_offsets[ends]).tolist(), "cu_seqlens": cu_seqlens}
        parts: dict[str, Any] = {name: x.split(lengths.get(name, tokens)) for name, x in flat.items()}
        row_counts = np.diff(self.row_offsets)
        return [
            PackedBatch(
                **{name: parts[name][m] for name in _TYPES},
                max_seqlen=max_seqlen,
                per_token={name: parts[name][m] for name in columns},
                indices=indices[ends[m] : ends[m + 1]],
                row_starts=self.row_starts[ends[m] : ends[m + 1]],
                row_counts=row_counts[ends[m] : ends[m + 1]],
            )
            for m, max_seqlen in enumerate(self.max_seqlens.tolist())
        ]


def _column_type(values: list | np.ndarray) -> torch.dtype:
    whole = isinstance(values, np.ndarray) and values.dtype.kind == "i"
    return torch.int64 if whole else torch.float32


def _sample(samples: Sequence[Sample], index: int) -> Sample:
    if not 0 <= index < len(samples):
        raise UserError(f"the plan has sample index {index}, but there are {len(samples)} samples")
    return samples[index]


def _columns(chosen: list[Sample], indices: list[int], first: Sample) -> dict[str, list | np.ndarray]:
    """Per-token values by name: lists of arrays, or one array with a value for each sample."""
    per_response, per_sample = first.per_response_token.keys(), first.per_sample.keys()
    for index, sample in zip(indices, chosen, strict=True):
        if sample.per_response_token.keys() != per_response or sample.per_sample.keys() != per_sample:
            given, expected = ([*s.per_response_token, *s.per_sample] for s in (sample, first))
            raise UserError(f"sample {index} has the values {given}, the first sample {expected}")
    columns: dict[str, list | np.ndarray] = {
        name: [s.per_response_token[name] for s in chosen] for name in per_response
    }
    for name in per_sample:
        if name in columns or name in _TYPES:
            raise UserError(f"per-token value {name!r} is already defined")
        values = np.array([s.per_sample[name] for s in (first, *chosen)])[1:]
        columns[name] = values.astype(np.int64 if values.dtype.kind in "iu" else np.float32)
    return columns
