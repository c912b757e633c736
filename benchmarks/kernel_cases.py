"""What the kernel benchmarks time: each op of ralign.kernels beside plain torch, torch.compile and Liger-Kernel.

A case makes its inputs on a device and gives one callable an implementation. Inputs come in several copies that
calls take in turn, so that no call finds its data in a cache. `num_bytes` and `num_flops` are the least that
any implementation must move and compute.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import torch
from ralign.kernels.advantages import GRPO, group_advantages_ref
from ralign.kernels.linear_logprob import linear_logprob
from ralign.kernels.linear_policy_loss import linear_policy_loss
from ralign.kernels.logprob import logprob, logprob_ref
from ralign.kernels.policy_loss import policy_loss, policy_loss_ref
from ralign.kernels.rms_norm import rms_norm, rms_norm_ref
from torch import Tensor


@dataclass(kw_only=True)
class Case:
    """One op at one shape. `target_ms` is the goal on an H200, of the whole call; `target_share`, of the time that the
    roofs (copy and matrix product) allow, on any GPU."""

    name: str
    shape: str
    num_bytes: int = 0
    num_flops: int = 0
    run: dict[str, Callable[[], object]] = field(repr=False)
    target_ms: float | None = None
    target_share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Tokens, vocabulary, hidden size, sequences; a GPU gets those of a 32B model."""

    num_tokens: int
    vocab: int
    hidden: int
    num_samples: int
    dtype: torch.dtype


GPU = Sizes(num_tokens=8192, vocab=151_936, hidden=5120, num_samples=4096, dtype=torch.bfloat16)
CPU = Sizes(num_tokens=256, vocab=32_000, hidden=256, num_samples=1024, dtype=torch.float32)
NUM_COPIES = 2
LOSS_TOKENS = 8192
OBJECTIVE = {"clip_high": 0.28, "dual_clip": 3.0, "tis_cap": 2.0, "kl_coef": 0.01, "kl_kind": "k3"}


def make_cases(device: str, sizes: Sizes) -> Iterator[Case]:
    """All cases, one after the other: a caller that forgets one before it asks for the next frees its inputs."""
    torch.manual_seed(0)
    for make in CASES:
        case = make(device, sizes)
        if device != "cuda":
            case.target_ms = case.target_share = None
        yield case
        del case
        if device == "cuda":
            torch.cuda.empty_cache()


def compiled(function, device):
    """torch.compile's version, on a GPU alone: on a CPU it would time the C++ compiler first."""
    return {"torch.compile": torch.compile(function, dynamic=False)} if device == "cuda" else {}


def liger(name: str, device: str):
    """A function of Liger-Kernel (extra `bench`); None without a GPU or where it is not installed."""
    if device != "cuda":
        return None
    try:
        from liger_kernel.transformers import functional
    except ImportError:
        return None
    return getattr(functional, name)


def in_turn(call: Callable, copies: list[tuple]) -> Callable[[], object]:
    """Calls with the next copy of the inputs each time."""
    turn = cycle(copies)
    return lambda: call(*next(turn))


def forward_backward(op: Callable) -> Callable[..., object]:
    """An op that gives a tensor or a tuple of them, and its backward with gradients of ones."""

    def run(*args):
        out = op(*args)
        out = [
            x
            for x in (out if isinstance(out, tuple) else (out,))
            if isinstance(x, Tensor) and x.requires_grad
        ]
        for x in args:
            x.grad = None
        torch.autograd.backward(out, [torch.ones_like(x) for x in out])

    return run


def timed(ops: dict[str, Callable], copies: list[tuple], backward: bool) -> dict[str, Callable[[], object]]:
    wrap = forward_backward if backward else torch.no_grad()
    return {name: in_turn(wrap(op), copies) for name, op in ops.items()}


def logprob_case(device, sizes, *, backward, vocab_shards=1, target_ms=None) -> Case:
    n, v = sizes.num_tokens, sizes.vocab // vocab_shards
    copies = [
        (
            torch.randn(n, v, device=device, dtype=sizes.dtype).requires_grad_(backward),
            torch.randint(0, v, (n,), device=device),
        )
        for _ in range(NUM_COPIES * vocab_shards)
    ]
    ours = partial(logprob, valid_vocab=v, overwrite_logits=backward)
    ops = {"ralign": ours, "torch": logprob_ref, **compiled(logprob_ref, device)}
    if backward and (cross_entropy := liger("liger_cross_entropy", device)):
        ops["liger"] = partial(cross_entropy, reduction="sum")
    size = n * v * copies[0][0].element_size()
    return Case(
        name=f"logprob, forward{' and backward' if backward else ''}",
        shape=f"N={n} V={v} {sizes.dtype}",
        num_bytes=size * 3 if backward else size,
        run=timed(ops, copies, backward),
        target_ms=target_ms,
    )


def head_inputs(device, sizes):
    n, v, h = sizes.num_tokens, sizes.vocab, sizes.hidden
    hidden = torch.randn(n, h, device=device, dtype=sizes.dtype)
    weight = (torch.randn(v, h, device=device) / h**0.5).to(sizes.dtype).requires_grad_()
    return [
        (hidden.clone().requires_grad_(), weight, torch.randint(0, v, (n,), device=device)) for _ in range(2)
    ]


def plain_head(hidden, weight, targets):
    """What a user writes: the product in the model's dtype, then log-softmax and entropy in fp32."""
    return logprob_ref(hidden @ weight.t(), targets)


def linear_logprob_case(device, sizes, *, backward, target_ms=None) -> Case:
    n, v, h = sizes.num_tokens, sizes.vocab, sizes.hidden
    rows = torch.arange(n, device=device)
    ops = {"ralign": partial(linear_logprob, valid_vocab=v, rows=rows), "torch": plain_head}
    if backward and (fused := liger("liger_fused_linear_cross_entropy", device)):
        ops["liger"] = partial(fused, reduction="sum")
    return Case(
        name=f"linear_logprob, forward{' and backward' if backward else ''}",
        shape=f"N={n} V={v} H={h} {sizes.dtype}",
        num_flops=(8 if backward else 2) * n * v * h,
        run=timed(ops, head_inputs(device, sizes), backward),
        target_ms=target_ms,
    )


def loss_inputs(num_tokens, device):
    """[logprobs, old logprobs, advantages, weights], {rollout and reference logprobs}; fp32."""
    logprobs = -torch.rand(num_tokens, device=device) * 3
    old, rollout, reference = (logprobs + torch.randn_like(logprobs) / 10 for _ in range(3))
    weights = torch.full_like(logprobs, 1 / num_tokens)
    weights[::3] = 0
    tokens = [logprobs.requires_grad_(), old, torch.randn(num_tokens, device=device), weights]
    return tokens, {"rollout_logprobs": rollout, "ref_logprobs": reference}


def linear_policy_loss_case(device, sizes, *, target_ms=None) -> Case:
    n, v, h = sizes.num_tokens, sizes.vocab, sizes.hidden
    (_, *tokens), per_token = loss_inputs(n, device)
    tokens[2] = torch.full_like(tokens[2], 1 / n)
    rows = torch.arange(n, device=device), torch.arange(0, device=device)

    def one_pass(hidden, weight, targets):
        options = {"valid_vocab": v, "rows": rows, **per_token, **OBJECTIVE}
        return linear_policy_loss(hidden, weight, targets, *tokens, **options)[0]

    def two_steps(head, loss, hidden, weight, targets):
        out = loss(head(hidden, weight, targets)[0], *tokens, **per_token, **OBJECTIVE)
        return out[0] if isinstance(out, tuple) else out

    head = partial(linear_logprob, valid_vocab=v, rows=rows[0])
    ops = {
        "ralign": one_pass,
        "ralign in two steps": partial(two_steps, head, policy_loss),
        "torch": partial(two_steps, plain_head, policy_loss_ref),
    }
    return Case(
        name="linear_policy_loss, forward and backward",
        shape=f"N={n} V={v} H={h} {sizes.dtype}",
        num_flops=6 * n * v * h,
        run=timed(ops, head_inputs(device, sizes), backward=True),
        target_ms=target_ms,
    )


def policy_loss_case(device, sizes, *, many=1, target_ms=None) -> Case:
    n = LOSS_TOKENS * many
    copies = [loss_inputs(n, device) for _ in range(NUM_COPIES)]
    ops = {"ralign": policy_loss, "torch": policy_loss_ref, **compiled(policy_loss_ref, device)}

    def call(op, tokens, per_token):
        return op(*tokens, **per_token, **OBJECTIVE)

    return Case(
        name="policy_loss, forward",  # ours has the gradient by then, the others have not
        shape=f"N={n} fp32",
        num_bytes=n * 4 * 7,
        run={name: in_turn(partial(call, op), copies) for name, op in ops.items()},
        target_ms=target_ms,
    )


def policy_loss_of_sequences_case(device, sizes) -> Case:
    """Ratio, importance weight and mask of whole sequences: a kernel more, which reads their tokens twice."""
    n, num_sequences = LOSS_TOKENS * 4, 32
    copies = [loss_inputs(n, device) for _ in range(NUM_COPIES)]
    levels = dict.fromkeys(("ratio_level", "tis_level", "mask_level"), "geometric")
    bounds = torch.linspace(0, n, num_sequences + 1, device=device).to(torch.int32)

    def call(op, tokens, per_token):
        return op(*tokens, **per_token, **OBJECTIVE, **levels, cu_seqlens=bounds)

    ops = {"ralign": policy_loss, "torch": policy_loss_ref}
    return Case(
        name="policy_loss of sequences, forward",
        shape=f"N={n} S={num_sequences} fp32",
        num_bytes=n * 4 * (2 * 5 + 4 + 7 + 4),
        run={name: in_turn(partial(call, op), copies) for name, op in ops.items()},
    )


def advantages_case(device, sizes, *, target_ms=None) -> Case:
    s = sizes.num_samples
    groups = torch.arange(s, device=device) // 8
    copies = [
        (torch.randn(s, device=device), groups, torch.rand(s, device=device) > 0.1) for _ in range(NUM_COPIES)
    ]
    ops = {
        "ralign": GRPO,
        "torch (loop over groups)": partial(group_advantages_ref, estimator=GRPO),
    }
    return Case(
        name="group_advantages",
        shape=f"S={s} groups of 8",
        num_bytes=s * 17,
        run={name: in_turn(op, copies) for name, op in ops.items()},
        target_ms=target_ms,
    )


def rms_norm_case(device, sizes, *, backward, heads=False) -> Case:
    n, h = (sizes.num_tokens * 64, 128) if heads else (sizes.num_tokens * 4, sizes.hidden)
    copies = [
        tuple(
            x.to(sizes.dtype).requires_grad_(backward)
            for x in (torch.randn(n, h, device=device), torch.ones(h, device=device))
        )
        for _ in range(NUM_COPIES)
    ]

    def plain(x, weight):
        return rms_norm_ref(x, weight, 1e-6)

    ops = {"ralign": lambda x, w: rms_norm(x, w, 1e-6), "torch": plain, **compiled(plain, device)}
    if norm := liger("liger_rms_norm", device):
        ops["liger"] = lambda x, w: norm(x, w, 1e-6)
    size = n * h * copies[0][0].element_size()
    return Case(
        name=f"rms_norm, forward{' and backward' if backward else ''}",
        shape=f"N={n} H={h} {sizes.dtype}",
        # Forward reads x and writes y; the ones are written; backward reads x and dy and writes dx.
        num_bytes=size * (6 if backward else 2),
        run=timed(ops, copies, backward),
        target_share=0.85 if backward else None,
    )


CASES = [
    partial(logprob_case, backward=False, target_ms=0.64),
    partial(logprob_case, backward=True, target_ms=1.9),
    partial(logprob_case, backward=True, vocab_shards=8, target_ms=0.30),
    partial(linear_logprob_case, backward=False, target_ms=17),
    partial(linear_logprob_case, backward=True),
    partial(linear_policy_loss_case, target_ms=53),
    partial(policy_loss_case, target_ms=0.010),
    partial(policy_loss_case, many=128),
    policy_loss_of_sequences_case,
    partial(advantages_case, target_ms=0.010),
    partial(rms_norm_case, backward=False),
    partial(rms_norm_case, backward=True),
    partial(rms_norm_case, backward=True, heads=True),
]
