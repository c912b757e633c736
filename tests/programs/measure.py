"""What the device's allocator gave out during a call."""

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function) -> int:
    """The most bytes that a call held at once beyond what was there, as torch's allocator reports it."""
    return _peak_on_cuda(function) if torch.cuda.is_available() else _peak_on_cpu(function)


def _peak_on_cuda(function) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(function) -> int:
    """The CPU's allocator keeps no statistics: the profiler sees each of its calls."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        function()
    events = recording.profiler.kineto_results.events()
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in sizes]).max(initial=0))
