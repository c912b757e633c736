"""vLLM's KV cache on and off: its memory is given back while the policy trains.

On CUDA vLLM's own sleep mode does it (its allocator keeps the addresses that CUDA graphs know). It takes along what
the engine made when it loaded the model: on the shared path that is small (rotary tables; the weights are the
trainer's and stay) and is kept in host memory; on the gather path it is the engine's own weights, which nobody
needs before they are gathered anew, so they are lost. On CPU, where vLLM ignores sleep, the cache's storages are
emptied and made again.
"""

import torch
from ralign.engine.generator.vllm_internals import kv_cache_storages


class KVCache:
    """The cache of one engine in this process; awake when made.

    Attributes:
        lost_weights: the engine's own weights went with the cache; whoever writes them anew says so here.
    """

    def __init__(self, llm, device: torch.device, *, owns_weights: bool = False):
        """`owns_weights`: the engine does not read the trainer's memory (the gather path)."""
        self._llm, self._on_cpu = llm, device.type == "cpu"
        self._sleep_level = 2 if owns_weights else 1  # vLLM's: 1 keeps weights in host memory, 2 only buffers
        self.lost_weights = False
        self._sizes: list[int] | None = None
        self.is_awake = True
        self._weights_awake = True

    def forget(self) -> None:
        """Drop what was computed with weights that have changed. Nothing may be generating."""
        is_dropped = self._llm.reset_prefix_cache()
        assert is_dropped, "the KV cache is in use"

    def sleep(self) -> None:
        """Free it; what it held is forgotten. Nothing may be generating."""
        if not self.is_awake:
            return
        self.forget()
        if self._on_cpu:
            storages = kv_cache_storages(self._llm)
            self._sizes = [storage.nbytes() for storage in storages]
            for storage in storages:
                storage.resize_(0)
        else:
            self._llm.sleep(level=self._sleep_level)
            self._weights_awake, self.lost_weights = False, self._sleep_level == 2
        self.is_awake = False

    def wake_weights(self) -> None:
        """Before the engine's own weights are read or written: on CUDA its sleep takes them along."""
        if not self._weights_awake:
            self._wake("weights")
            self._weights_awake = True

    def wake(self) -> None:
        """Have the memory again; its contents are undefined, and nothing refers to them."""
        if self.is_awake:
            return
        if self._on_cpu:
            for storage, size in zip(kv_cache_storages(self._llm), self._sizes, strict=True):
                storage.resize_(size)
        else:
            self.wake_weights()
            self._wake("kv_cache")
        self.is_awake = True

    def _wake(self, tag: str) -> None:
        torch.cuda.empty_cache()  # vLLM takes memory from the driver; what torch keeps for itself is not there
        self._llm.wake_up(tags=[tag])

    def num_bytes(self) -> int:
        """Bytes that the cache holds now."""
        if not self.is_awake:
            return (
                0 if not self._on_cpu else sum(storage.nbytes() for storage in kv_cache_storages(self._llm))
            )
        return sum(storage.nbytes() for storage in kv_cache_storages(self._llm))
