"""All random states of a process as plain values: torch on host and device, Megatron's tracker, Python, numpy."""

import random

import numpy as np
import torch
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from ralign.engine.runtime.cuda_stand_in import on_megatron


def rng_state() -> dict:
    """All random states, for `set_rng_state`."""
    numpy_state, tracker = np.random.get_state(legacy=True), get_cuda_rng_tracker()
    assert isinstance(numpy_state, tuple) and tracker is not None
    kind, keys, position, has_gauss, gauss = numpy_state
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "megatron": dict(tracker.get_states()),
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
    }


@on_megatron
def set_rng_state(state: dict) -> None:
    """Restore all random states."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    tracker = get_cuda_rng_tracker()
    assert tracker is not None
    tracker.set_states(state["megatron"])
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
