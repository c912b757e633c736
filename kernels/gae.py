"""Generalised advantage estimation over packed sequences (Schulman et al. 2016, arXiv:1506.02438).

Over the response tokens of a sequence, t = 1..L, with the state's value V_t and V_{L+1} = 0 (an answer ends the
episode, whether it stopped or was cut off):

    δ_t = r_t + γ V_{t+1} − V_t
    A_t = δ_t + γ λ A_{t+1}
    R_t = A_t + V_t             what the critic is to learn

Rows of a sequence that are masked out (a prompt, padding) are skipped: the recursion goes from one response token to
the next as if they were not there. λ = 1 and γ = 1 give A_t = (sum of the rewards from t on) − V_t.

The recursion is computed in float64, from each sequence's end. On CUDA one program a sequence, which scans it in
blocks (an associative scan of affine maps of A and V); in torch, all sequences abreast, one step a position.

Shapes: N tokens, packed; S sequences.
"""

import torch
import triton
import triton.language as tl
from ralign.kernels.implementation import uses_triton

_BLOCK = 128


def gae_ref(rewards, values, mask, cu_seqlens, *, gamma, lam):
    """The textbook loop, sequence by sequence and backwards."""
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    for start, end in zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True):
        next_value = next_advantage = 0.0
        for t in reversed(range(start, end)):
            if not mask[t]:
                continue
            value = float(values[t])
            delta = float(rewards[t]) + gamma * next_value - value
            next_advantage = delta + gamma * lam * next_advantage
            next_value = value
            advantages[t], returns[t] = next_advantage, next_advantage + value
    return advantages, returns


@triton.jit
def _then(a1, b1, c1, k1, d1, a2, b2, c2, k2, d2):
    """Maps (A, V) -> (a A + b V + c, k V + d): first 1, then 2."""
    return a1 * a2, a2 * b1 + b2 * k1, a2 * c1 + b2 * d1 + c2, k1 * k2, k2 * d1 + d2


@triton.jit
def _gae_kernel(
    rewards, values, mask, cu_seqlens, advantages, returns, GAMMA: tl.constexpr, LAMBDA: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    sequence = tl.program_id(0)
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    place = tl.arange(0, BLOCK)
    last = place == BLOCK - 1
    later_a = tl.zeros((1,), tl.float64)  # A and V of the counted token that follows
    later_v = tl.zeros((1,), tl.float64)
    for back in range(0, end - start, BLOCK):
        t = end - 1 - back - place  # from the end: place 0 is the latest token
        inside = t >= start
        counted = tl.load(mask + t, mask=inside, other=0) != 0
        value = tl.where(counted, tl.load(values + t, mask=inside, other=0.0).to(tl.float64), 0.0)
        reward = tl.where(counted, tl.load(rewards + t, mask=inside, other=0.0).to(tl.float64), 0.0)
        zero = tl.zeros((BLOCK,), tl.float64)
        # A counted token: A = gamma lambda A' + gamma V' + (r - v), V = v. Others leave both as they are.
        a, b, c, k, d = tl.associative_scan(
            (
                tl.where(counted, zero + GAMMA * LAMBDA, zero + 1.0),
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


def _gae_triton(rewards, values, mask, cu_seqlens, gamma, lam):
    rewards, values, mask = rewards.contiguous(), values.contiguous(), mask.contiguous()
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    _gae_kernel[(cu_seqlens.numel() - 1,)](
        rewards, values, mask.view(torch.uint8), cu_seqlens.contiguous(), advantages, returns,
        GAMMA=gamma, LAMBDA=lam, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return advantages, returns


def _gae_torch(rewards, values, mask, cu_seqlens, gamma, lam):
    """Counted tokens right-aligned in a grid [S, longest]; one column at a time from the right."""
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
        later = delta[:, column] + gamma * lam * later
        advantage[:, column] = later
    found = advantage[sequence, from_end]
    advantages[rows] = found.to(values.dtype)
    returns[rows] = (found + values[rows].double()).to(values.dtype)
    return advantages, returns


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    implementation: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns of each response token.

    rewards: [N] float, of each token (an answer's own reward stands on its last one). values: [N] float, the
        critic's. Both are read where `mask` holds, and may be anything elsewhere, NaN too.
    mask: [N] bool, response tokens that count.
    cu_seqlens: [S + 1] integer, starts of the sequences and N, rising; empty sequences are allowed.
    gamma: discount, and lam: λ, each from 0 to 1.
    implementation: "auto", "torch" or "triton"; see implementation.py.

    Returns (advantages, returns), [N] in the values' dtype, 0 where masked out, without gradient. Raises ValueError
    for shapes or dtypes that do not fit, and for gamma or lam out of range.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam are from 0 to 1, got {gamma} and {lam}")
    if not rewards.shape == values.shape == mask.shape or values.ndim != 1:
        shapes = [list(x.shape) for x in (rewards, values, mask)]
        raise ValueError(f"rewards, values and mask must be [N] alike, got {shapes}")
    if mask.dtype != torch.bool or cu_seqlens.ndim != 1 or cu_seqlens.is_floating_point():
        raise ValueError(
            f"mask bool and cu_seqlens [S + 1] integer wanted, got {mask.dtype}, {cu_seqlens.dtype}"
        )
    if values.numel() == 0 or cu_seqlens.numel() < 2:
        return torch.zeros_like(values), torch.zeros_like(values)
    run = _gae_triton if uses_triton(implementation, values) else _gae_torch
    return run(rewards.detach(), values.detach(), mask, cu_seqlens, gamma, lam)
