"""The generator: vLLM in the training processes, reading the trainer's own weights.

Prompts are token ids; a rollout has token ids, the engine's logprobs, and the weight version that sampled them. After
the first update of a process, or after every one if so configured, a checksum proves that the engine reads the values
that the trainer wrote.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator import engine_args
from ralign.engine.generator.kv_cache import KVCache
from ralign.engine.generator.proof import prove_computation
from ralign.engine.generator.replicas import Replicas
from ralign.engine.generator.vllm_internals import named_request
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime.cluster import Cluster


@dataclass(kw_only=True, slots=True)
class Rollout:
    """One sampled response.

    Attributes:
        prompt_index: position of its prompt in the list given to `generate`.
        response_ids: int64 [L], the end token included when the response ended by itself.
        logprobs: fp32 [L], the engine's, of each response token at the sampling temperature.
        finish_reason: "stop" or "length".
        weight_version: number of updates the weights had seen.
    """

    prompt_index: int
    response_ids: np.ndarray
    logprobs: np.ndarray
    finish_reason: str
    weight_version: int


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Sampling within this context depends on `seed` only; all random states are restored.

    vLLM's first model runner draws from torch's global state for each token. The second one, the default on CUDA in
    later versions, draws a seed for each request from numpy's.
    """
    numpy_state = np.random.get_state()
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


def rollouts_crc(rollouts: Sequence[Rollout]) -> int:
    """CRC-32 of all lengths, tokens and logprobs."""
    crc = 0
    for rollout in rollouts:
        crc = zlib.crc32(len(rollout.response_ids).to_bytes(8, "little"), crc)
        crc = zlib.crc32(rollout.response_ids.tobytes(), crc)
        crc = zlib.crc32(rollout.logprobs.tobytes(), crc)
    return crc


def _free_share(device: torch.device) -> float:
    free, total = torch.cuda.mem_get_info(device)
    return free / total


class Generator:
    """One vLLM engine a group of neighbouring ranks (a replica).

    Where the trainer's layout allows it, the engine's parameters are views of the policy's (the shared path);
    otherwise the engine has its own, which `sync_weights` fills from the policy's (the gather path).

    Attributes:
        replicas: this rank's place among the engines.
        is_shared: the engine reads the policy's own weights.
        weight_version: updates that the policy's weights have seen.
        on_progress: called at each step of the engine, for a watchdog.
    """

    def __init__(
        self,
        policy: Policy,
        cluster: Cluster,
        config: GeneratorConfig,
        *,
        max_model_len: int,
        eos_token_id: int | Sequence[int],
        kv_bytes: int | None = None,
        bucket_bytes: int = 256 << 20,
        can_sleep: bool = False,
    ):
        """Start vLLM; collective.

        Args:
            eos_token_id: every id that ends a response; it is the last token of the response.
            kv_bytes: KV cache of this rank; None takes the configured size.
            bucket_bytes: staging memory of the gather path.
            can_sleep: `sleep` gives the KV cache back (on CUDA this needs vLLM's own allocator).
        """
        self.policy, self.cluster = policy, cluster
        self.stop_token_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
        self.tensor_size = config.tensor or cluster.tp_size
        self.is_shared = self.tensor_size == cluster.tp_size and cluster.pp_size == 1
        self.replicas = Replicas(cluster, self.tensor_size)
        self.weight_version, self._can_sleep = 0, can_sleep
        self.on_progress: Callable[[], None] = lambda: None
        engine_args.prepare_environment(config)
        from ralign.engine.generator import cpu_engine, shared
        from vllm import LLM

        on_cpu = cluster.device.type == "cpu"
        if not on_cpu:
            engine_args.check_all_reduce(config)
        args = engine_args.engine_args(
            config,
            folder=str(Path(policy.folder)),
            load_format=shared.register_shared_loader(policy.vllm_parameters())
            if self.is_shared
            else shared.register_empty_loader(),
            tensor=self.tensor_size,
            dtype=str(policy.gpt.config.params_dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            kv_bytes=kv_bytes or int(config.kv_cache_gib * 2**30),
            on_cpu=on_cpu,
            free_share=1.0 if on_cpu else _free_share(cluster.device),
            can_sleep=can_sleep,
        )
        with cpu_engine.starting(cluster) if on_cpu else nullcontext():
            self.llm = LLM(**args)
        self.kv_cache = KVCache(self.llm, cluster.device, owns_weights=not self.is_shared)
        self._gather = None if self.is_shared else self._make_gather(bucket_bytes)
        self._is_stale = not self.is_shared

    def _make_gather(self, bucket_bytes: int):
        from ralign.engine.generator import gather

        world = gather.describe(self.policy.gpt, self.cluster, self.tensor_size)
        target = self.llm.apply_model(lambda model: dict(model.named_parameters()))[0]
        source = self.policy.vllm_parameters()
        assert set(target) == set(world.catalog), set(target) ^ set(world.catalog)
        self._world = world
        return gather.WeightGather(
            world,
            self.cluster.rank,
            {name: x for name, x in source.items() if world.catalog[name][0] == self.cluster.pp_rank},
            {name: x.data for name, x in target.items()},
            bucket_bytes,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        on_finished: Callable[[int, Rollout], None] = lambda index, rollout: None,
    ) -> list[Rollout]:
        """Sample responses; the same call with the same seed and weights gives the same tokens. `wake` comes before.

        Args:
            prompts: token ids; each replica brings its own, all its ranks the same.
            num_samples: responses a prompt, adjacent in the result.
            seed: of this call; ranks of one replica must agree, others should differ.
            on_finished: called with each rollout and its index in the result, as soon as it is finished. It must not
                draw from torch's or numpy's global random state, or the ranks of a replica sample differently.

        Returns:
            len(prompts) * num_samples rollouts, prompts in order.
        """
        from vllm import RequestOutput, SamplingParams, TokensPrompt

        assert self.kv_cache.is_awake and not self._is_stale, "wake the generator before it generates"
        sampling = SamplingParams(
            n=1,
            temperature=temperature,
            max_tokens=max_new_tokens,
            stop_token_ids=self.stop_token_ids,
            logprobs=0,
            detokenize=False,
            flat_logprobs=True,
        )
        requests = [
            TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts for _ in range(num_samples)
        ]
        with seeded(seed, self.cluster.device), torch.inference_mode(False):
            order = {name: index for index, name in enumerate(self._enqueue(requests, sampling))}
            rollouts: list = [None] * len(requests)
            while self.llm.llm_engine.has_unfinished_requests():
                self.on_progress()
                for output in cast(list[RequestOutput], self.llm.llm_engine.step()):
                    if output.finished:
                        index = order[output.request_id]
                        rollouts[index] = self._rollout(index // num_samples, output.outputs[0])
                        on_finished(index, rollouts[index])
        self.replicas.check_same(rollouts_crc(rollouts))
        return rollouts

    def _enqueue(self, requests: list, sampling) -> list[str]:
        """Request ids as the engine's outputs carry them."""
        return [named_request(name) for name in self.llm.enqueue(requests, sampling, use_tqdm=False)]

    def _rollout(self, prompt_index: int, completion) -> Rollout:
        # One logprob a position was asked for (logprobs=0: the sampled token), so the flat list is the sequence.
        flat = completion.logprobs
        logprobs = np.asarray([flat.logprobs[start] for start in flat.start_indices], dtype=np.float32)
        assert len(logprobs) == len(completion.token_ids)
        return Rollout(
            prompt_index=prompt_index,
            response_ids=np.asarray(completion.token_ids, dtype=np.int64),
            logprobs=logprobs,
            finish_reason=str(completion.finish_reason),
            weight_version=self.weight_version,
        )

    def held_bytes(self) -> int:
        """Bytes of the KV cache and, on the gather path, of the engine's own weights."""
        own = 0
        if not self.is_shared:
            own = self.llm.apply_model(lambda model: sum(x.nbytes for x in model.parameters()))[0]
        return own + self.kv_cache.num_bytes()

    def weights_updated(self) -> None:
        """Call it after an update: prefixes of the old weights are dropped, and the version counts up.

        On the shared path the engine has the new weights already; on the gather path the next `sync_weights` copies
        them, once for any number of updates.
        """
        self.weight_version += 1
        self.weights_changed()

    def weights_changed(self) -> None:
        """`weights_updated` for a change that is not an update: the version stays."""
        self._is_stale = not self.is_shared
        self.kv_cache.forget()

    def wake(self) -> None:
        """Give the engine the newest weights and its KV cache: the one place that does so. Collective."""
        self.sync_weights()
        self.kv_cache.wake()

    def sleep(self) -> None:
        """Give the KV cache's memory back, where the memory plan asks for it. Nothing may be generating."""
        if self._can_sleep:
            self.kv_cache.sleep()

    def sync_weights(self) -> None:
        """On the gather path, copy the newest weights into the engine if it holds older ones; collective there."""
        if self._is_stale or self.kv_cache.lost_weights:
            assert self._gather is not None
            self.kv_cache.wake_weights()
            self._gather.update()
            self._is_stale = self.kv_cache.lost_weights = False

    def verify(self) -> None:
        """Prove by checksums that the engine reads the values that the trainer wrote; a mismatch raises RuntimeError.

        Collective on the gather path: every replica is compared with the sum over the trainer's shards.
        """
        self.sync_weights()
        self.kv_cache.wake_weights()
        written, read = self._checksums_shared() if self.is_shared else self._checksums_gathered()
        wrong = sorted(name for name in written if read.get(name) != written[name])
        if wrong:
            raise RuntimeError(
                f"weight version {self.weight_version}: the engine reads other values than the trainer wrote in "
                f"{len(wrong)} of {len(written)} tensors, first {wrong[0]}"
            )

    def prove(self) -> float:
        """Prove that the engine uses the trainer's weights and agrees with the trainer (proof.py); collective.

        `wake` comes before, and again after. Returns the mean difference of a sampled token's logprob.

        Raises:
            RuntimeError: it does not.
        """
        return prove_computation(self.policy, self)

    def _checksums_shared(self) -> tuple[dict[str, int], dict[str, int]]:
        from ralign.engine.generator.checksum import checksums

        read = self.llm.apply_model(lambda model: checksums(model.named_parameters()))[0]
        return checksums(self.policy.vllm_parameters().items()), read

    def _checksums_gathered(self) -> tuple[dict[str, int], dict[str, int]]:
        """Checksums of whole tensors, summed over the trainer's shards and over this replica's."""
        from ralign.engine.generator.checksum import add_up, shard_checksum

        cluster, catalog = self.cluster, self._world.catalog
        place = self.replicas.place
        read = self.llm.apply_model(
            lambda model: {
                name: shard_checksum(x, catalog[name][1], self.tensor_size, place)
                for name, x in model.named_parameters()
            }
        )[0]
        written = {
            name: shard_checksum(x, catalog[name][1], cluster.tp_size, cluster.tp_rank)
            for name, x in self.policy.vllm_parameters().items()
            if cluster.dp_rank == cluster.cp_rank == 0 and catalog[name][0] == cluster.pp_rank
        }
        first = self.replicas.index * self.tensor_size
        return (
            add_up(written, range(cluster.world_size)),
            add_up(read, range(first, first + self.tensor_size)),
        )

    def close(self) -> None:
        """End the engine and, with it, the process groups it shares with the job."""
        self.kv_cache.wake()  # vLLM frees a sleeping cache with a warning
        self.llm.llm_engine.engine_core.shutdown()
