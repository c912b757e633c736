"""From ragged samples to packed micro-batches, and back.

The trainer's contract: `plan` says which samples go into which micro-batch of which data-parallel rank,
under a hard token cap; `materialise` makes one micro-batch's flat tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ralign.engine.errors import UserError

IGNORE = -100


@dataclass(kw_only=True, slots=True)
class Sample:
    """One prompt and response.

    Attributes:
        prompt_ids, response_ids: int64 [L].
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
        targets: int64 [T]; the response token that position t predicts, or -100.
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
        """[T] -> for each sample, in order, the values at its response tokens."""
        return [per_token[rows] for rows in self.rows]


@dataclass(kw_only=True, slots=True)
class Plan:
    """Sample indices of each micro-batch: micro_batches[rank][k] int64; all ranks have equally many."""

    micro_batches: list[list[np.ndarray]]


def plan(lengths: Sequence[int], *, token_budget: int, dp_size: int = 1) -> Plan:
    """Micro-batches of at most `token_budget` tokens, as few as the cap allows, balanced over ranks.

    Longest first, each sample into the micro-batch with the fewest tokens; if that breaks the cap, again
    with one more micro-batch a rank. Deterministic.

    Raises:
        UserError: a sample longer than the budget, or fewer samples than ranks.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) < dp_size:
        raise UserError(f"{len(sizes)} samples cannot be spread over {dp_size} data-parallel ranks")
    longest = int(sizes.argmax())
    if sizes[longest] > token_budget:
        raise UserError(f"sample {longest} has {sizes[longest]} tokens, more than token_budget={token_budget}")
    num_bins = -(-max(1, -(-int(sizes.sum()) // token_budget)) // dp_size) * dp_size
    order = np.argsort(-sizes, kind="stable")
    while (bins := _spread(sizes, order, num_bins, token_budget)) is None:
        num_bins += dp_size
    bins = [np.asarray(sorted(members), dtype=np.int64) for members in bins]
    return Plan(micro_batches=[bins[rank::dp_size] for rank in range(dp_size)])


def _spread(sizes: np.ndarray, order: np.ndarray, num_bins: int, token_budget: int) -> list[list[int]] | None:
    loads = np.zeros(num_bins, dtype=np.int64)
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for index in order:
        target = int(loads.argmin())
        if loads[target] + sizes[index] > token_budget:
            return None
        loads[target] += sizes[index]
        bins[target].append(int(index))
    return bins


def materialise(samples: Sequence[Sample], indices: np.ndarray, *, pad_multiple: int = 1) -> PackedBatch:
    """The flat tensors of one micro-batch: samples[i] for i in indices, padded to a multiple of `pad_multiple`."""
    chosen = [samples[i] for i in indices]
    lengths = [len(sample) for sample in chosen]
    num_tokens = sum(lengths)
    padding = -num_tokens % pad_multiple
    starts = np.cumsum([0, *lengths])
    input_ids = np.zeros(num_tokens + padding, dtype=np.int64)
    targets = np.full(num_tokens + padding, IGNORE, dtype=np.int64)
    position_ids = np.zeros(num_tokens + padding, dtype=np.int64)
    names = [*chosen[0].per_response_token, *chosen[0].per_sample]
    per_token = {name: np.zeros(num_tokens + padding, dtype=np.float32) for name in names}
    rows = []
    for sample, start in zip(chosen, starts, strict=False):
        end = start + len(sample)
        predicting = slice(int(start) + len(sample.prompt_ids) - 1, int(end) - 1)
        input_ids[start:end] = np.concatenate([sample.prompt_ids, sample.response_ids])
        position_ids[start:end] = np.arange(len(sample))
        targets[predicting] = sample.response_ids
        for name, values in (sample.per_response_token | sample.per_sample).items():
            per_token[name][predicting] = values
        rows.append(predicting)
    position_ids[num_tokens:] = np.arange(padding)
    cu_seqlens = np.asarray([*starts, num_tokens + padding] if padding else starts, dtype=np.int32)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids),
        targets=torch.from_numpy(targets),
        position_ids=torch.from_numpy(position_ids),
        cu_seqlens=torch.from_numpy(cu_seqlens),
        max_seqlen=max(*lengths, padding),
        per_token={name: torch.from_numpy(values) for name, values in per_token.items()},
        rows=rows,
    )
