"""A judge inside the training processes: a second vLLM engine next to the actor's own, with weights of its own.

Each process has one for the samples that it generated; nothing crosses the network. It is asked between
generating and training, so that the two engines never run at once.
"""

import ctypes
import gc
import hashlib
import sys
from concurrent.futures import Future
from contextlib import nullcontext

from ralign.engine.generator.engine_args import LOGITS_IN_FP32
from ralign.engine.generator.generator import Generator
from ralign.engine.generator.vllm_internals import detach_shutdown
from ralign.engine.judging.judge import Reply, Request
from ralign.engine.judging.local_model import LocalModel, LocalModelConfig


class ResidentJudge(LocalModel):
    """A `LocalModel` that shares the job's process groups, and leaves them in place when it closes."""

    def __init__(self, config: LocalModelConfig, generator: Generator):
        """Collective over the job, beside its `generator`."""
        assert config.tensor == 1, "ranks that share an engine would have to ask in the same order"
        import torch
        from ralign.engine.generator.cpu_engine import unpacked_weights

        on_cpu = not torch.cuda.is_available()
        options: dict = {"distributed_executor_backend": "external_launcher", **LOGITS_IN_FP32}
        if on_cpu:  # what compiling saves a small model on a CPU it takes to start
            options["enforce_eager"] = True
        self._generator = generator
        with unpacked_weights() if on_cpu else nullcontext():  # `identity` reads the parameters
            super().__init__(config, **options)

    def submit(self, request: Request) -> Future[Reply]:
        # vLLM keeps one rotary table for both engines of the process, in the memory that the generator's sleep takes.
        assert self._generator.kv_cache.is_awake, "the resident judge is asked while the generator sleeps"
        return super().submit(request)

    def identity(self) -> str:
        """A short name of the weights that the engine reads: another one for other values."""
        from ralign.engine.generator.checksum import checksums

        found = self._llm.apply_model(lambda model: checksums(model.named_parameters()))[0]
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]

    def close(self) -> None:
        """Give its memory back. vLLM's own shutdown would take the job's process groups down with it."""
        self._waiting.put(None)
        self._thread.join()
        detach_shutdown(self._llm)
        del self._llm
        gc.unfreeze()  # vLLM freezes what it makes
        gc.collect()
        if sys.platform == "linux":  # glibc keeps what was freed: half a GB a judge in the paper's miniature
            ctypes.CDLL("libc.so.6").malloc_trim(0)
