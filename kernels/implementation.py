"""Which implementation of an op runs: Triton for CUDA tensors, torch for the others, or the one asked for."""

import torch

IMPLEMENTATIONS = ("auto", "torch", "triton")


def uses_triton(implementation: str, x: torch.Tensor) -> bool:
    """`auto`: the tensor's device decides. `torch` and `triton` are what they say, on any device: the first
    for diagnosis on CUDA, the second for Triton's interpreter on a CPU."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    return x.is_cuda if implementation == "auto" else implementation == "triton"
