"""Vocab-parallel ops on real process groups, against the reference on the whole vocabulary; float64.

argv[2]: cpu (gloo; under TRITON_INTERPRET=1 the ops run their Triton kernels) or cuda (NCCL, one GPU a rank).
"""

import json
import os
import sys

import torch
import torch.distributed as dist
from ralign.kernels.linear_logprob import linear_logprob, linear_logprob_ref
from ralign.kernels.linear_policy_loss import linear_policy_loss, linear_policy_loss_ref
from ralign.kernels.logprob import IGNORE, logprob, logprob_ref

IMPLEMENTATION = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "auto"


def upstream():
    return torch.linspace(-1, 2, 12, dtype=torch.float64)


def run(op, leaves, targets, **options):
    """Both outputs and the gradient of each leaf."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    logprobs, entropy = op(*leaves, targets, temperature=0.7, **options)
    grads = torch.autograd.grad((logprobs * upstream() + entropy * upstream().flip(0)).sum(), leaves)
    return [logprobs.detach(), entropy.detach(), *grads]


def run_loss(op, leaves, targets, **options):
    """The loss and the gradient of each leaf."""
    leaves = [x.clone().requires_grad_() for x in leaves]
    old, weights = upstream().sin() - 3, (targets != IGNORE).double() / 12
    out = op(
        *leaves,
        targets,
        old,
        upstream(),
        weights,
        temperature=0.7,
        dual_clip=3.0,
        entropy_coef=0.1,
        **options,
    )
    loss = out[0] if isinstance(out, tuple) else out
    return [loss.detach(), *torch.autograd.grad(2 * loss, leaves)]


def shard(x):
    return x.chunk(dist.get_world_size())[dist.get_rank()].contiguous()


def compare(results, truth, num_shared=2) -> dict:
    """Largest error on any rank, and whether the first results have the same bits on every rank."""
    error = torch.stack([(a - b).abs().amax() for a, b in zip(results, truth, strict=True)]).amax()
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    everyones = [None] * dist.get_world_size()
    dist.all_gather_object(everyones, [x.tolist() for x in results[:num_shared]])
    return {"error": error.item(), "same_on_all_ranks": all(x == everyones[0] for x in everyones)}


def main():
    if sys.argv[2] == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.set_default_device("cuda")
    dist.init_process_group("nccl" if sys.argv[2] == "cuda" else "gloo")
    world, group = dist.get_world_size(), dist.group.WORLD
    torch.manual_seed(0)
    hidden = torch.randn(12, 5, dtype=torch.float64)
    weight = torch.randn(16 * world, 5, dtype=torch.float64)
    mixed = torch.tensor([0, 15, 16, IGNORE, 18, 3, 9, 17, IGNORE, 2, 16, 1])
    cases = {}
    # The whole vocabulary, a last shard partly padding, a last shard of nothing but padding.
    for valid_vocab in (16 * world, 19, 16):
        targets = torch.where(mixed < valid_vocab, mixed, 0)
        options = {"valid_vocab": valid_vocab, "vocab_start": 16 * dist.get_rank(), "group": group}
        options["implementation"] = IMPLEMENTATION
        truth = run(linear_logprob_ref, [hidden, weight], targets, valid_vocab=valid_vocab)
        local = [*truth[:3], shard(truth[3])]
        replicated = run(linear_logprob, [hidden, shard(weight)], targets, chunk_tokens=5, **options)
        cases[f"replicated hidden, {valid_vocab}"] = compare(replicated, local)
        split = run(
            linear_logprob, [shard(hidden), shard(weight)], targets, sequence_parallel=True, **options
        )
        local[2] = shard(truth[2])
        cases[f"sequence parallel, {valid_vocab}"] = compare(split, local)
        truth = run_loss(linear_policy_loss_ref, [hidden, weight], targets, valid_vocab=valid_vocab)
        for sequence_parallel in (False, True):
            leaves = [shard(hidden) if sequence_parallel else hidden, shard(weight)]
            fused = run_loss(
                linear_policy_loss,
                leaves,
                targets,
                sequence_parallel=sequence_parallel,
                chunk_tokens=5,
                **options,
            )
            local = [truth[0], shard(truth[1]) if sequence_parallel else truth[1], shard(truth[2])]
            cases[f"loss, sequence parallel {sequence_parallel}, {valid_vocab}"] = compare(
                fused, local, num_shared=1
            )
    logits = hidden @ weight.t()
    truth = run(logprob_ref, [logits], mixed, valid_vocab=19)
    columns = slice(16 * dist.get_rank(), 16 * (dist.get_rank() + 1))
    options = {"valid_vocab": 19, "vocab_start": columns.start, "group": group}
    options["implementation"] = IMPLEMENTATION
    local = [*truth[:2], truth[2][:, columns]]
    cases["logits"] = compare(run(logprob, [logits[:, columns]], mixed, **options), local)
    nothing = torch.full((12,), IGNORE)
    zeros = [torch.zeros(12, dtype=torch.float64)] * 2 + [
        torch.zeros_like(x) for x in (hidden, shard(weight))
    ]
    cases["all ignored"] = compare(run(linear_logprob, [hidden, shard(weight)], nothing, **options), zeros)
    logits[:, 16:] = -torch.inf  # one shard without a finite logit
    low = torch.where(mixed < 16, mixed, 0)
    truth = run(logprob_ref, [logits], low, valid_vocab=19)
    local = [*truth[:2], truth[2][:, columns]]
    cases["shard of -inf"] = compare(run(logprob, [logits[:, columns]], low, **options), local)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(cases, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
