"""What the CPU's allocator gave out during a call."""

import numpy as np
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function) -> int:
    """The most bytes that a call held at once beyond what was there, as the allocator reports it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        function()
    events = recording.profiler.kineto_results.events()
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([size for _, size in sizes]).max(initial=0))
