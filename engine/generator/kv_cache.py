"""Frees vLLM's KV cache while the policy trains, and restores it.

On CUDA this is vLLM's sleep mode, whose allocator keeps the addresses that CUDA graphs hold. It also frees what the
engine allocated when it loaded the model. On the shared path that is small (rotary tables; the weights belong to the
trainer and stay) and is kept in host memory. On the gather path it is the engine's own weights; they are discarded,
since the next update gathers them again. On CPU vLLM ignores sleep: the storages of the cache are emptied and resized.
"""

import torch
from ralign.engine.generator.vllm_internals import kv_cache_storages


class KVCache:
    """The cache of one engine in this process; awake at first.

    Attributes:
        lost_weights: the engine's own weights were discarded; the code that writes them again resets this.
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
        """Drop the prefixes that older weights computed. Nothing may be generating."""
        is_dropped = self._llm.reset_prefix_cache()
        assert is_dropped, "the KV cache is in use"

    def sleep(self) -> None:
        """Free the cache and drop its contents. Nothing may be generating."""
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
        """Restore the engine's own weights' memory, which sleep frees on CUDA, before they are read or written."""
        if not self._weights_awake:
            self._wake("weights")
            self._weights_awake = True

    def wake(self) -> None:
        """Restore the cache's memory; its contents are undefined, and no prefix refers to them."""
        if self.is_awake:
            return
        if self._on_cpu:
            assert self._sizes is not None
            for storage, size in zip(kv_cache_storages(self._llm), self._sizes, strict=True):
                storage.resize_(size)
        else:
            self.wake_weights()
            self._wake("kv_cache")
        self.is_awake = True

    def _wake(self, tag: str) -> None:
        torch.cuda.empty_cache()  # vLLM allocates from the driver, which does not have what torch caches
        self._llm.wake_up(tags=[tag])

    def num_bytes(self) -> int:
        """Bytes that the cache holds now."""
        if not self.is_awake:
            return (
                0 if not self._on_cpu else sum(storage.nbytes() for storage in kv_cache_storages(self._llm))
            )
        return sum(storage.nbytes() for storage in kv_cache_storages(self._llm))
