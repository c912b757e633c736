"""A judge inside the training processes: a second vLLM engine next to the actor's own, with weights of its own.

Each process has one for the samples that it generated; nothing crosses the network. It is asked between
generating and training, so that the two engines never run at once.
"""

import ctypes
import gc
import hashlib
import sys

from ralign.engine.evaluation.local_model import LocalModel, LocalModelConfig


class ResidentJudge(LocalModel):
    """A `LocalModel` that shares the job's process groups, and leaves them in place when it closes."""

    def __init__(self, config: LocalModelConfig):
        """Collective over the job, after the generator was made."""
        assert config.tensor == 1, "ranks that share an engine would have to ask in the same order"
        import torch

        # What compiling saves a small model on a CPU it takes to start.
        eager = {} if torch.cuda.is_available() else {"enforce_eager": True}
        super().__init__(config, distributed_executor_backend="external_launcher", **eager)

    def identity(self) -> str:
        """A short name of the weights that the engine reads: another one for other values."""
        from ralign.engine.generator.checksum import checksums

        found = self._llm.apply_model(lambda model: checksums(model.named_parameters()))[0]
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]

    def close(self) -> None:
        """Give its memory back. vLLM's own shutdown would take the job's process groups down with it."""
        self._waiting.put(None)
        self._thread.join()
        self._llm.llm_engine.engine_core._finalizer.detach()
        del self._llm
        gc.unfreeze()  # vLLM freezes what it makes
        gc.collect()
        if sys.platform == "linux":  # glibc keeps what was freed: half a GB a judge in the paper's miniature
            ctypes.CDLL("libc.so.6").malloc_trim(0)
