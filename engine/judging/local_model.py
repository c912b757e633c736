"""A Hugging Face folder as a `Judge`: vLLM in this process, with continuous batching over all requests."""

import hashlib
import json
import os
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ralign.engine.data.chat import Prompt, encode_messages
from ralign.engine.data.verdicts import THINKING
from ralign.engine.judging.judge import Judge, Reply, Request, Usage
from ralign.engine.runtime.errors import UserError


@dataclass(kw_only=True, slots=True, frozen=True)
class LocalModelConfig:
    """A model to load, and its sampling."""

    folder: str
    temperature: float
    max_new_tokens: int
    seed: int = 0
    plain: bool = False  # no chat template, even if the tokenizer has one
    tensor: int = 1
    max_model_len: int | None = None  # None: the model's
    max_num_seqs: int = 256
    kv_cache_gib: float = 4.0  # without a GPU
    gpu_memory_utilization: float = 0.9


class _Refused(Exception):
    """Why the model cannot take a request."""


class LocalModel(Judge):
    """One thread runs the engine. A reply depends only on the seed and the request."""

    def __init__(self, config: LocalModelConfig, **engine_options: Any) -> None:
        """Load the model; `engine_options` are vLLM's. UserError if the folder contains no model."""
        if not (Path(config.folder) / "config.json").is_file():
            raise UserError(f"{config.folder} is not a Hugging Face model folder: it has no config.json")
        self.config = config
        self.usage = Usage()
        self._llm = _load(config, engine_options)
        self._tokenizer = self._llm.get_tokenizer()
        self._max_model_len = self._llm.model_config.max_model_len
        self._chat = not config.plain and bool(self._tokenizer.chat_template)
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Reply]] | None] = queue.SimpleQueue()
        self._running: dict[str, Future[Reply]] = {}
        self._in_thought: set[str] = set()  # running requests whose prompt ends inside a thinking block
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="local-model", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Reply]:
        future: Future[Reply] = Future()
        if self._broken is not None:
            future.set_exception(self._broken)
        else:
            self._waiting.put((request, future))
        return future

    def close(self) -> None:
        """End the engine and free its memory. No request may be under way."""
        self._waiting.put(None)
        self._thread.join()
        from vllm.distributed import cleanup_dist_env_and_memory

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        cleanup_dist_env_and_memory()

    def _serve(self) -> None:
        try:
            while self._take():
                for output in self._llm.llm_engine.step():
                    if output.finished:
                        self._finish(output)
        except BaseException as error:  # a bug, or a crash of the engine: every future must get it
            self._broken = error
            while not self._waiting.empty():
                if (item := self._waiting.get()) is not None:
                    item[1].set_exception(error)
            for future in self._running.values():
                future.set_exception(error)
            raise

    def _take(self) -> bool:
        """Pass waiting requests to the engine; block while there are none at all. False after `close`."""
        while not self._running or not self._waiting.empty():
            item = self._waiting.get()
            if item is None:
                return False
            request, future = item
            name = str(self.usage.num_calls + len(self._running))
            self._running[name] = future  # first, so that an error below reaches the future
            try:
                prompt = self._prompt(request)
            except _Refused as refused:
                self.usage.num_failed += 1
                self._running.pop(name).set_result(Reply(failed=True, problem=str(refused)))
                continue
            if prompt.opens_thinking:
                self._in_thought.add(name)
            ids = {"prompt_token_ids": prompt.ids.tolist()}
            self._llm.llm_engine.add_request(name, ids, self._sampling(request))
        return True

    def _prompt(self, request: Request) -> Prompt:
        """Raises `_Refused` for a request that the model cannot take."""
        try:
            prompt = encode_messages([request.messages], self._tokenizer, chat=self._chat)[0]
        except UserError as error:
            raise _Refused(str(error)) from error
        if len(prompt.ids) >= self._max_model_len:
            raise _Refused(f"the prompt has {len(prompt.ids)} tokens, the model takes {self._max_model_len}")
        return prompt

    def _sampling(self, request: Request) -> Any:
        from vllm import SamplingParams

        content = json.dumps([self.config.seed, request.messages, request.attempt])
        return SamplingParams(
            temperature=0.0 if request.greedy else self.config.temperature,
            max_tokens=self.config.max_new_tokens,
            seed=int.from_bytes(hashlib.sha256(content.encode()).digest()[:4], "big"),
        )

    def _finish(self, output: Any) -> None:
        future, completion = self._running.pop(output.request_id), output.outputs[0]
        opening = THINKING if output.request_id in self._in_thought else ""
        self._in_thought.discard(output.request_id)
        self.usage.num_calls += 1
        self.usage.num_prompt_tokens += len(output.prompt_token_ids)
        self.usage.num_answer_tokens += len(completion.token_ids)
        future.set_result(
            Reply(
                text=opening + completion.text,
                finish_reason=str(completion.finish_reason),
                num_prompt_tokens=len(output.prompt_token_ids),
                num_answer_tokens=len(completion.token_ids),
            )
        )


def _load(config: LocalModelConfig, engine_options: dict[str, Any]) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import torch
    from ralign.engine.runtime.device import gpu_problem, prepare_cpu

    if problem := gpu_problem():
        raise UserError(problem)
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        prepare_cpu()
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        # vLLM's CPU worker reads this at start, and refuses a cache smaller than its own default.
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(max(1, round(config.kv_cache_gib))))
    from vllm import LLM

    memory: dict[str, Any] = {"gpu_memory_utilization": config.gpu_memory_utilization}
    if on_cpu:
        memory = {
            "block_size": 32,
            "kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30),
            # With chunked prefill vLLM rewinds a request's own random generator, which torch's CPU generators cannot
            # do.
            "enable_chunked_prefill": False,
        }
    return LLM(
        model=config.folder,
        tensor_parallel_size=config.tensor,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        enable_prefix_caching=True,
        seed=config.seed,
        **engine_options,
        **memory,
    )
