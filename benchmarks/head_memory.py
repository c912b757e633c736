"""Peak memory and time of the LM head, forward and backward, on this machine's CPU, against plain torch: as logprobs
and entropies, and with the policy loss folded in, as the engine computes it.

    python benchmarks/head_memory.py [--tokens 4096] [--hidden 1024] [--vocab 151936]

Each implementation runs in a process of its own; memory is the process's peak beyond its inputs and gradients.
"""

import argparse
import json
import resource
import subprocess
import sys
import time


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str, tokens: int, hidden_size: int, vocab: int) -> None:
    """Prints time and extra peak memory of one implementation as JSON."""
    import torch
    from kernel_cases import plain_head
    from ralign.kernels.linear_logprob import linear_logprob
    from ralign.kernels.linear_policy_loss import linear_policy_loss
    from ralign.kernels.policy_loss import policy_loss_ref

    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size).requires_grad_()
    weight = (torch.randn(vocab, hidden_size) / hidden_size**0.5).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,))
    advantages, weights = torch.randn(tokens), torch.full((tokens,), 1 / tokens)
    # Gradients that exist already, touched so that they are in memory: what is measured is what is beside them.
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
    before = peak_bytes()
    start = time.perf_counter()
    if name == "ralign, logprobs":
        sum(x.sum() for x in linear_logprob(hidden, weight, targets, valid_vocab=vocab)).backward()
    elif name == "torch, logprobs":
        sum(x.sum() for x in plain_head(hidden, weight, targets)).backward()
    elif name == "ralign, loss":
        linear_policy_loss(hidden, weight, targets, None, advantages, weights, valid_vocab=vocab)[
            0
        ].backward()
    else:
        logprobs, _ = plain_head(hidden, weight, targets)
        policy_loss_ref(logprobs, logprobs.detach(), advantages, weights).backward()
    elapsed_s = time.perf_counter() - start
    # Both add a fresh gradient of each input to the one that is there.
    fresh = sum(x.numel() * x.element_size() for x in (hidden, weight))
    print(json.dumps({"time_s": elapsed_s, "extra_bytes": peak_bytes() - before - fresh}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for option, value in (("tokens", 4096), ("hidden", 1024), ("vocab", 151_936)):
        parser.add_argument(f"--{option}", type=int, default=value)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure(args.only, args.tokens, args.hidden, args.vocab)
        return
    shape = [f"--{name}={getattr(args, name)}" for name in ("tokens", "hidden", "vocab")]
    for what in ("logprobs", "loss"):
        ours, theirs = (of_process(f"{who}, {what}", shape) for who in ("ralign", "torch"))
        memory, time_share = theirs["extra_bytes"] / ours["extra_bytes"], ours["time_s"] / theirs["time_s"]
        print(f"{what}: memory 1/{memory:.1f}, time {time_share:.2f} of plain torch")


def of_process(name: str, shape: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, *shape, f"--only={name}"], stdout=subprocess.PIPE, check=True
    )
    result = json.loads(done.stdout)
    extra_gb = result["extra_bytes"] / 1e9
    print(f"{name:18} {result['time_s']:7.1f} s  {extra_gb:6.2f} GB beyond inputs and gradients", flush=True)
    return result


if __name__ == "__main__":
    main()
