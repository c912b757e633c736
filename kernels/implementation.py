"""Choice of an implementation: Triton for CUDA tensors, torch for the others, or the one that is named.

`jit` is Triton's decorator.
"""

from typing import Any

import torch
import triton

# Typed as Any: a type checker would take the signature of the kernel for that of its launcher.
jit: Any = triton.jit

IMPLEMENTATIONS = ("auto", "torch", "triton")


def uses_triton(implementation: str, x: torch.Tensor) -> bool:
    """implementation: "auto" chooses by the device of x. "torch" and "triton" hold on any device: "torch" for
    diagnosis on CUDA, "triton" for Triton's interpreter on a CPU. Raises ValueError for other names."""
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"implementation must be one of {', '.join(IMPLEMENTATIONS)}, got {implementation!r}"
        )
    return x.is_cuda if implementation == "auto" else implementation == "triton"
