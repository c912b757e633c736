"""A judge in the training processes: a second vLLM engine beside the actor's, with weights of its own.

Each process judges its own samples, without any network. Judging comes between generation and training, so the two
engines never run at the same time.
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
    """A `LocalModel` that shares the job's process groups, and does not destroy them when it closes."""

    def __init__(self, config: LocalModelConfig, generator: Generator):
        """Collective over the job. `generator` is the actor's."""
        assert config.tensor == 1, "ranks that share an engine would have to send requests in the same order"
        import torch
        from ralign.engine.generator.cpu_engine import unpacked_weights

        on_cpu = not torch.cuda.is_available()
        options: dict = {"distributed_executor_backend": "external_launcher", **LOGITS_IN_FP32}
        if on_cpu:  # for a small model on a CPU compiling takes as long as it saves
            options["enforce_eager"] = True
        self._generator = generator
        with unpacked_weights() if on_cpu else nullcontext():  # `identity` reads the parameters
            super().__init__(config, **options)

    def submit(self, request: Request) -> Future[Reply]:
        # Both engines of the process share one rotary table of vLLM, in memory that the generator's sleep frees.
        assert self._generator.kv_cache.is_awake, "a request while the generator sleeps"
        return super().submit(request)

    def identity(self) -> str:
        """A short hash of the engine's weights."""
        from ralign.engine.generator.checksum import checksums

        found = self._llm.apply_model(lambda model: checksums(model.named_parameters()))[0]
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]

    def close(self) -> None:
        """Free its memory. vLLM's own shutdown would destroy the job's process groups."""
        self._waiting.put(None)
        self._thread.join()
        detach_shutdown(self._llm)
        del self._llm
        gc.unfreeze()  # vLLM freezes its objects
        gc.collect()
        if (
            sys.platform == "linux"
        ):  # glibc keeps freed memory: half a GB for each judge in the paper's miniature
            ctypes.CDLL("libc.so.6").malloc_trim(0)
