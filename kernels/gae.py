"""Generalised advantage estimation over packed sequences (Schulman et al. 2016, arXiv:1506.02438).

Over the response tokens of a sequence, t = 1..L, with the state's value V_t and V_{L+1} = 0 (an answer ends the
episode, whether it stopped or was cut off):

    δ_t = r_t + γ V_{t+1} − V_t
    A_t = δ_t + γ λ A_{t+1}
    R_t = A_t + V_t             the target of the critic

Rows of a sequence that are masked out (a prompt, padding) are skipped: the recursion runs over the response tokens
alone. λ = 1 and γ = 1 give A_t = (sum of the rewards from t on) − V_t.

λ may differ between sequences. The recursion is computed in float64, from the end of each sequence. On CUDA, one
program scans each sequence in blocks (an associative scan of affine maps of A and V). In torch, all sequences run in
parallel, one step a position.

Shapes: N tokens, packed; S sequences.
"""

import torch
import triton.language as tl
from ralign.kernels.implementation import jit, uses_triton
from torch import Tensor

_BLOCK = 128


def gae_ref(rewards, values, mask, cu_seqlens, *, gamma, lam):
    """The textbook loop over each sequence, backwards."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for sequence, (start, end) in enumerate(
        zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)
    ):
        next_value = next_advantage = 0.0
        for t in reversed(range(start, end)):
            if not mask[t]:
                continue
            value = float(values[t])
            delta = float(rewards[t]) + gamma * next_value - value
            factor = float(lam[sequence]) if isinstance(lam, Tensor) else lam
            next_advantage = delta + gamma * factor * next_advantage
            next_value = value
            advantages[t], returns[t] = next_advantage, next_advantage + value
    return advantages, returns


@jit
def _then(a1, b1, c1, k1, d1, a2, b2, c2, k2, d2):
    """Composes the maps (A, V) -> (a A + b V + c, k V + d): map 1, then map 2."""
    return a1 * a2, a2 * b1 + b2 * k1, a2 * c1 + b2 * d1 + c2, k1 * k2, k2 * d1 + d2


@jit
def _gae_kernel(
    rewards, values, mask, cu_seqlens, lambdas, advantages, returns, GAMMA: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    decay = GAMMA * tl.load(lambdas + sequence)
    place = tl.arange(0, BLOCK)
    last = place == BLOCK - 1
    later_a = tl.zeros((1,), tl.float64)  # A and V of the next counted token
    later_v = tl.zeros((1,), tl.float64)
    for back in range(0, end - start, BLOCK):
        t = end - 1 - back - place  # place 0 is the last token
        inside = t >= start
        counted = tl.load(mask + t, mask=inside, other=0) != 0
        value = tl.where(counted, tl.load(values + t, mask=inside, other=0.0).to(tl.float64), 0.0)
        reward = tl.where(counted, tl.load(rewards + t, mask=inside, other=0.0).to(tl.float64), 0.0)
        zero = tl.zeros((BLOCK,), tl.float64)
        # A counted token: A = gamma lambda A' + gamma V' + (r - v), V = v. Other tokens leave A and V unchanged.
        a, b, c, k, d = tl.associative_scan(
            (
                tl.where(counted, zero + decay, zero + 1.0),
                tl.where(counted, zero + GAMMA, zero),
                reward - value,
                tl.where(counted, zero, zero + 1.0),
                value,
            ),
            0,
            _then,
        )
        advantage = a * later_a + b * later_v + c
        newest = k * later_v + d
        tl.store(advantages + t, tl.where(counted, advantage, 0.0), mask=inside)
        tl.store(returns + t, tl.where(counted, advantage + value, 0.0), mask=inside)
        later_a = tl.sum(tl.where(last, advantage, 0.0), 0, keep_dims=True)
        later_v = tl.sum(tl.where(last, newest, 0.0), 0, keep_dims=True)


def _gae_triton(
    rewards: Tensor, values: Tensor, mask: Tensor, cu_seqlens: Tensor, gamma: float, lambdas: Tensor
) -> tuple[Tensor, Tensor]:
    rewards, values, mask = rewards.contiguous(), values.contiguous(), mask.contiguous()
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    _gae_kernel[(cu_seqlens.numel() - 1,)](
        rewards, values, mask.view(torch.uint8), cu_seqlens.contiguous(), lambdas, advantages, returns,
        GAMMA=gamma, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return advantages, returns


def _gae_torch(
    rewards: Tensor, values: Tensor, mask: Tensor, cu_seqlens: Tensor, gamma: float, lambdas: Tensor
) -> tuple[Tensor, Tensor]:
    """Right-aligns the counted tokens in a grid [S, longest] and walks over its columns from the right."""
    rows = mask.nonzero()[:, 0]
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    if rows.numel() == 0:
        return advantages, returns
    counted_before = torch.nn.functional.pad(mask.long().cumsum(0), (1, 0))
    ends = counted_before[cu_seqlens[1:].long()]
    order = torch.arange(rows.numel(), device=rows.device)
    sequence = torch.searchsorted(ends, order, right=True)
    from_end = ends[sequence] - 1 - order
    longest = int(from_end.max()) + 1
    grid = torch.zeros(2, cu_seqlens.numel() - 1, longest + 1, dtype=torch.float64, device=rows.device)
    grid[:, sequence, from_end + 1] = torch.stack([rewards[rows], values[rows]]).double()
    reward, value = grid
    delta = reward[:, 1:] + gamma * value[:, :-1] - value[:, 1:]
    advantage = torch.zeros_like(delta)
    later = torch.zeros_like(delta[:, 0])
    for column in range(longest):
        later = delta[:, column] + gamma * lambdas * later
        advantage[:, column] = later
    found = advantage[sequence, from_end]
    advantages[rows] = found.to(values.dtype)
    returns[rows] = (found + values[rows].double()).to(values.dtype)
    return advantages, returns


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    cu_seqlens: Tensor,
    *,
    gamma: float = 1.0,
    lam: float | Tensor = 1.0,
    implementation: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Computes the advantage and the return of each response token.

    rewards: [N] float, of each token (the reward of a response is on its last token). values: [N] float, of the
        critic. Both are read where `mask` is True, and may be anything elsewhere, NaN too.
    mask: [N] bool, True for the response tokens that count.
    cu_seqlens: [S + 1] integer, starts of the sequences and N, ascending; empty sequences are allowed.
    gamma: discount. lam: λ, or [S] float of each sequence. Both are in [0, 1]; a tensor is not checked, since the host
        would wait for it.
    implementation: "auto", "torch" or "triton"; see implementation.py.

    Returns (advantages, returns), [N] in the dtype of the values, 0 where masked out, without gradient. Raises
    ValueError for shapes or dtypes that do not fit, and for gamma or lam out of range.
    """
    if not (0 <= gamma <= 1 and (isinstance(lam, Tensor) or 0 <= lam <= 1)):
        raise ValueError(f"gamma and lam must be in [0, 1], got {gamma} and {lam}")
    if not rewards.shape == values.shape == mask.shape or values.ndim != 1:
        shapes = [list(x.shape) for x in (rewards, values, mask)]
        raise ValueError(f"rewards, values and mask must be [N] alike, got {shapes}")
    if mask.dtype != torch.bool or cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"mask must be bool and cu_seqlens [S + 1] integer, got {mask.dtype} and {cu_seqlens.dtype}"
        )
    if values.numel() == 0 or cu_seqlens.numel() < 2:
        return torch.zeros_like(values), torch.zeros_like(values)
    num_sequences = cu_seqlens.numel() - 1
    lambdas = torch.full((num_sequences,), 1.0, dtype=torch.float64, device=values.device)
    lambdas = lambdas * lam if not isinstance(lam, Tensor) else lam.to(torch.float64).contiguous()
    if lambdas.shape != (num_sequences,):
        raise ValueError(f"lam must be a number or [{num_sequences}], got {list(lambdas.shape)}")
    run = _gae_triton if uses_triton(implementation, values) else _gae_torch
    return run(rewards.detach(), values.detach(), mask, cu_seqlens, gamma, lambdas)
