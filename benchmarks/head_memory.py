"""Peak memory and time of the LM head's logprobs, forward and backward, on this machine's CPU, against plain torch.

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

    torch.manual_seed(0)
    hidden = torch.randn(tokens, hidden_size).requires_grad_()
    weight = (torch.randn(vocab, hidden_size) / hidden_size**0.5).requires_grad_()
    targets = torch.randint(0, vocab, (tokens,))
    # Gradients that exist already, touched so that they are in memory: what is measured is what is beside them.
    hidden.grad, weight.grad = torch.ones_like(hidden), torch.ones_like(weight)
    before = peak_bytes()
    start = time.perf_counter()
    if name == "torch":
        logprobs, entropy = plain_head(hidden, weight, targets)
    else:
        logprobs, entropy = linear_logprob(hidden, weight, targets, valid_vocab=vocab)
    (logprobs.sum() + entropy.sum()).backward()
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
    parser.add_argument("--only", choices=("ralign", "torch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        measure(args.only, args.tokens, args.hidden, args.vocab)
        return
    shape = [f"--{name}={getattr(args, name)}" for name in ("tokens", "hidden", "vocab")]
    results = {}
    for name in ("ralign", "torch"):
        done = subprocess.run(
            [sys.executable, __file__, *shape, f"--only={name}"], stdout=subprocess.PIPE, check=True
        )
        results[name] = json.loads(done.stdout)
        extra_gb = results[name]["extra_bytes"] / 1e9
        print(
            f"{name:8} {results[name]['time_s']:7.1f} s  {extra_gb:6.2f} GB beyond inputs and gradients",
            flush=True,
        )
    ours, theirs = results["ralign"], results["torch"]
    memory, time_share = theirs["extra_bytes"] / ours["extra_bytes"], ours["time_s"] / theirs["time_s"]
    print(f"memory 1/{memory:.1f}, time {time_share:.2f} of plain torch")


if __name__ == "__main__":
    main()
