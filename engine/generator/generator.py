"""The generator: vLLM in the training processes, reading the trainer's own weights.

Token ids go in, token ids come out with the engine's logprobs and the weight version that made them. A
version is proved (checksum of what the engine reads against what the trainer wrote) before it is used, at
the first update of every run and on demand.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ralign.engine.cluster import Cluster
from ralign.engine.config import GeneratorConfig
from ralign.engine.errors import UserError
from ralign.engine.policy.policy import Policy


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


class Generator:
    """One vLLM engine a tensor-parallel group, sharing the policy's parameters."""

    def __init__(
        self,
        policy: Policy,
        cluster: Cluster,
        config: GeneratorConfig,
        *,
        max_model_len: int,
        eos_token_id: int,
    ):
        """Start vLLM on views of the policy's parameters.

        Raises:
            UserError: the training layout differs from vLLM's (pipeline stages, too few query groups).
        """
        if cluster.pp_size > 1:
            raise UserError(
                f"parallel.pipeline={cluster.pp_size}: generation shares the trainer's weights and needs "
                "every layer on each rank; use parallel.pipeline=1"
            )
        self.policy, self.cluster, self.eos_token_id = policy, cluster, eos_token_id
        self.weight_version = 0
        self._prepare_environment()
        from ralign.engine.generator.shared import register_shared_loader
        from vllm import LLM

        on_cpu = cluster.device.type == "cpu"
        memory = int(config.kv_cache_gib * 2**30)
        self.llm = LLM(
            model=str(Path(policy.folder)),
            load_format=register_shared_loader(policy.vllm_parameters()),
            tensor_parallel_size=cluster.tp_size,
            distributed_executor_backend="external_launcher",
            dtype=str(policy.gpt.config.params_dtype).removeprefix("torch."),
            max_model_len=max_model_len,
            max_num_seqs=config.max_num_seqs,
            kv_cache_memory_bytes=memory,
            enforce_eager=config.enforce_eager or on_cpu,
            enable_prefix_caching=True,
            skip_tokenizer_init=True,
            # Ratios need the logprobs of the distribution that was sampled, temperature included.
            logprobs_mode="processed_logprobs",
            seed=0,
            **({"block_size": 32} if on_cpu else {"gpu_memory_utilization": config.gpu_memory_utilization}),
        )

    def _prepare_environment(self) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        if self.cluster.device.type == "cpu":
            # torchrun's processes already share the cores; vLLM would bind each of them anew.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            import vllm._custom_ops as custom_ops

            # oneDNN would pack a private copy of each weight at load and go on reading that copy.
            custom_ops._supports_onednn = False

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        num_samples: int,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[Rollout]:
        """Sample responses; the same call with the same seed and weights gives the same tokens.

        Args:
            prompts: token ids; each tensor-parallel group brings its own, all its ranks the same.
            num_samples: responses a prompt, adjacent in the result.
            seed: of this call; ranks of one tensor-parallel group must agree, others should differ.

        Returns:
            len(prompts) * num_samples rollouts, prompts in order.
        """
        from vllm import SamplingParams, TokensPrompt

        sampling = SamplingParams(
            n=1,
            temperature=temperature,
            max_tokens=max_new_tokens,
            stop_token_ids=[self.eos_token_id],
            logprobs=0,
            detokenize=False,
            flat_logprobs=True,
        )
        requests = [
            TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts for _ in range(num_samples)
        ]
        devices = [] if self.cluster.device.type == "cpu" else [self.cluster.device]
        with torch.random.fork_rng(devices), torch.inference_mode(False):
            torch.manual_seed(seed)
            outputs = self.llm.generate(requests, sampling, use_tqdm=False)
        return [
            self._rollout(index // num_samples, output.outputs[0]) for index, output in enumerate(outputs)
        ]

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

    def weights_updated(self) -> None:
        """The trainer changed the weights: they are here already; what was cached of the old ones is dropped."""
        self.weight_version += 1
        assert self.llm.reset_prefix_cache(), "the prefix cache is in use while the weights change"

    def verify(self) -> None:
        """Prove that the engine reads what the trainer wrote, byte for byte; a mismatch stops the run."""
        from ralign.engine.generator.shared import checksums

        read = self.llm.apply_model(lambda model: checksums(model.named_parameters()))[0]
        written = checksums(self.policy.vllm_parameters().items())
        wrong = sorted(name for name in written if read.get(name) != written[name])
        if wrong:
            raise RuntimeError(
                f"weight version {self.weight_version}: the engine reads other values than the trainer wrote in "
                f"{len(wrong)} of {len(written)} tensors, first {wrong[0]}"
            )

    def close(self) -> None:
        """End the engine and, with it, the process groups it shares with the job."""
        self.llm.llm_engine.engine_core.shutdown()
