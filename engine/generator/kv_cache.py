"""vLLM's KV cache on and off: its memory is given back while the policy trains.

On CUDA vLLM's own sleep mode does it (its allocator keeps the addresses that CUDA graphs know); the weights are
not in it on the shared path, and leave with it on the gather path. On CPU, where vLLM ignores sleep, the cache's
storages are emptied and made again.
"""

import torch


class KVCache:
    """The cache of one engine in this process; awake when made."""

    def __init__(self, llm, device: torch.device):
        self._llm, self._on_cpu = llm, device.type == "cpu"
        self._sizes: list[int] | None = None
        self.is_awake = True
        self._weights_awake = True

    def sleep(self) -> None:
        """Free it; what it held is forgotten. Nothing may be generating."""
        if not self.is_awake:
            return
        assert self._llm.reset_prefix_cache(), "the KV cache is in use"
        if self._on_cpu:
            storages = self._storages()
            self._sizes = [storage.nbytes() for storage in storages]
            for storage in storages:
                storage.resize_(0)
        else:
            self._llm.sleep(level=1)
            self._weights_awake = False
        self.is_awake = False

    def wake_weights(self) -> None:
        """Before the engine's own weights are read or written: on CUDA its sleep takes them along."""
        if not self._weights_awake:
            self._llm.wake_up(tags=["weights"])
            self._weights_awake = True

    def wake(self) -> None:
        """Have the memory again; its contents are undefined, and nothing refers to them."""
        if self.is_awake:
            return
        if self._on_cpu:
            for storage, size in zip(self._storages(), self._sizes, strict=True):
                storage.resize_(size)
        else:
            self.wake_weights()
            self._llm.wake_up(tags=["kv_cache"])
        self.is_awake = True

    def num_bytes(self) -> int:
        """Bytes that the cache holds now."""
        if not self.is_awake:
            return 0 if not self._on_cpu else sum(storage.nbytes() for storage in self._storages())
        return sum(storage.nbytes() for storage in self._storages())

    def _storages(self) -> list[torch.UntypedStorage]:
        """Each storage once; layers may share one."""
        caches = self._llm.llm_engine.model_executor.driver_worker.worker.model_runner.kv_caches
        tensors = [x for cache in caches for x in (cache if isinstance(cache, list | tuple) else [cache])]
        storages: dict[int, torch.UntypedStorage] = {}
        for tensor in tensors:
            storage = tensor.untyped_storage()
            storages.setdefault(storage._cdata, storage)
        return list(storages.values())
