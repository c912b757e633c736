"""From ragged samples to packed micro-batches, and back.

`plan` says which samples go into which micro-batch of which data-parallel rank, under a hard token cap;
`materialise` makes one micro-batch's flat tensors; `PackedBatch.unpack` gives per-token results back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from ralign.engine.errors import UserError
from ralign.kernels import _packing
from ralign.kernels.logprob import IGNORE
from torch import Tensor


@dataclass(kw_only=True, slots=True)
class Sample:
    """One prompt and response.

    Attributes:
        prompt_ids, response_ids: int64 [L]; the prompt is not empty.
        per_response_token: values of each response token (rollout logprobs, ...), fp32 [len(response_ids)].
        per_sample: values copied to every response token (advantage, loss weight).
    """

    prompt_ids: np.ndarray
    response_ids: np.ndarray
    per_response_token: dict[str, np.ndarray]
    per_sample: dict[str, float]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(kw_only=True, slots=True)
class PackedBatch:
    """Samples end to end; T tokens, padding included as a sequence of its own at the end.

    Attributes:
        input_ids, position_ids: int64 [T]; positions restart at 0 with each sample.
        targets: int64 [T]; the response token that position t predicts, or IGNORE (-100).
        cu_seqlens: int32 [B + 1] starts of the sequences and T.
        max_seqlen: the longest sequence.
        per_token: fp32 [T] each; a response token's value stands where the token is predicted, 0 elsewhere.
        rows: for each sample, the positions (in order) that predict its response tokens.
        packed_params: Megatron's form of cu_seqlens, kept for all layers and passes.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    per_token: dict[str, Tensor]
    rows: list[slice]
    packed_params: object = field(default=None)

    def to(self, device: torch.device) -> "PackedBatch":
        for name in ("input_ids", "targets", "position_ids", "cu_seqlens"):
            setattr(self, name, getattr(self, name).to(device, non_blocking=True))
        self.per_token = {name: x.to(device, non_blocking=True) for name, x in self.per_token.items()}
        return self

    def unpack(self, per_token: Tensor) -> list[Tensor]:
        """[T] -> for each sample, in order, the values at its response tokens (views)."""
        return [per_token[rows] for rows in self.rows]


@dataclass(kw_only=True, slots=True)
class Plan:
    """Sample indices of each micro-batch: micro_batches[rank][k] int64, ascending, never empty.

    All ranks have equally many; a rank's come by falling cost."""

    micro_batches: list[list[np.ndarray]]


def plan(
    lengths: Sequence[int] | np.ndarray,
    *,
    token_budget: int,
    dp_size: int = 1,
    multiple: int = 1,
    cost: tuple[float, float] = (1.0, 0.0),
) -> Plan:
    """As few micro-batches as best-fit-decreasing needs, balanced over ranks; every sample in exactly one.

    lengths: [n] tokens of each sample, at least 1.
    token_budget: no micro-batch holds more tokens; padding comes on top unless it divides the budget.
    dp_size: ranks. multiple: each rank's number of micro-batches is a multiple of it.
    cost: (a, b), a sample of l tokens costs a·l + b·l².

    The same input gives the same plan. Raises UserError, naming it, for a sample that is empty or longer than
    the budget, for fewer samples than micro-batches, and for lengths that are not whole numbers.
    """
    sizes = np.ascontiguousarray(lengths)
    if sizes.dtype.kind == "i":
        sizes = sizes.astype(np.int64, copy=False)
    linear, quadratic = cost
    try:
        indices, offsets = _packing.plan(
            sizes,
            token_budget=token_budget,
            dp_size=dp_size,
            multiple=multiple,
            linear=linear,
            quadratic=quadratic,
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    bins = np.split(indices, offsets[1:-1])
    per_rank = len(bins) // dp_size
    return Plan(micro_batches=[bins[r * per_rank : (r + 1) * per_rank] for r in range(dp_size)])


def materialise(samples: Sequence[Sample], indices: np.ndarray, *, pad_multiple: int = 1) -> PackedBatch:
    """The flat tensors of one micro-batch: samples[i] for i in indices, T a multiple of `pad_multiple`.

    Raises UserError, naming the sample, for one without a prompt or whose values do not fit its response.
    """
    chosen = [samples[i] for i in indices]
    names = [*chosen[0].per_response_token, *chosen[0].per_sample]
    for i, sample in zip(indices, chosen, strict=True):
        _check(i, sample, names)
    starts = np.cumsum([0, *(len(sample) for sample in chosen)])
    num_tokens = int(starts[-1])
    padding = -num_tokens % pad_multiple
    input_ids = np.zeros(num_tokens + padding, dtype=np.int64)
    targets = np.full(num_tokens + padding, IGNORE, dtype=np.int64)
    per_token = {name: np.zeros(num_tokens + padding, dtype=np.float32) for name in names}
    rows = []
    for sample, start, end in zip(chosen, starts, starts[1:], strict=False):
        predicting = slice(int(start) + len(sample.prompt_ids) - 1, int(end) - 1)
        input_ids[start : predicting.start + 1] = sample.prompt_ids
        input_ids[predicting.start + 1 : end] = sample.response_ids
        targets[predicting] = sample.response_ids
        for name, values in (sample.per_response_token | sample.per_sample).items():
            per_token[name][predicting] = values
        rows.append(predicting)
    cu_seqlens = np.append(starts, num_tokens + padding) if padding else starts
    seqlens = np.diff(cu_seqlens)
    position_ids = np.arange(num_tokens + padding) - np.repeat(cu_seqlens[:-1], seqlens)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        max_seqlen=int(seqlens.max()),
        per_token={name: torch.from_numpy(values) for name, values in per_token.items()},
        rows=rows,
    )


def _check(index: int, sample: Sample, names: list[str]) -> None:
    """numpy would broadcast a value of the wrong length, and without a prompt nothing predicts token 0."""
    if len(sample.prompt_ids) == 0:
        raise UserError(f"sample {index} has an empty prompt")
    if sorted([*sample.per_response_token, *sample.per_sample]) != sorted(names):
        given = [*sample.per_response_token, *sample.per_sample]
        raise UserError(f"sample {index} brings {given}, the first of its micro-batch {names}")
    for name, values in sample.per_response_token.items():
        if np.shape(values) != (len(sample.response_ids),):
            wanted = len(sample.response_ids)
            raise UserError(
                f"sample {index}: {name} has shape {list(np.shape(values))} for {wanted} response tokens"
            )
