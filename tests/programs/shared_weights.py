"""Trainer against generator before training and after each of five updates.

argv[2:]: the trainer's tensor- and pipeline-parallel sizes, the generator's tensor-parallel size (0: the same), and
the weights' dtype, fp32 (the default) or bf16, and the model's family.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from ralign.engine.algorithms.losses import supervised_loss
from ralign.engine.config.algo import OptimConfig
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.data.packing import Sample
from ralign.engine.generator.generator import Generator, seeded
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import VOCAB, make_model, pack

TEMPERATURE = 0.7
PROMPT_TOKENS = 40  # more than a block of the prefix cache, whose contents an update makes stale


def rollout_batches(generator, policy, cluster, prompts, seed):
    generator.wake()
    rollouts = generator.generate(
        prompts, num_samples=2, max_new_tokens=24, temperature=TEMPERATURE, seed=seed
    )
    samples = [
        Sample(
            prompt_ids=np.asarray(prompts[r.prompt_index]),
            response_ids=r.response_ids,
            per_response_token={"rollout_logprobs": r.logprobs},
            per_sample={"weights": 1e-3},
        )
        for r in rollouts
    ]
    every = [s for part in generator.replicas.all_gather_data(samples) for s in part]
    return pack(every, cluster, token_budget=1024, pad_multiple=policy.pad_multiple), rollouts


def differences(policy, batches) -> tuple[float, float]:
    """(mean, largest) |logprob of the trainer - logprob of the engine| over the sampled tokens."""
    found = [
        (output[0] - batch.per_token["rollout_logprobs"])[batch.targets >= 0].abs()
        for batch, output in zip(batches, policy.logprobs(batches), strict=True)
    ]
    every = torch.cat(found)
    return every.mean().item(), every.max().item()


def main(
    result: str,
    tensor: str,
    pipeline: str = "1",
    generate: str = "0",
    dtype: str = "fp32",
    family: str = "qwen3",
) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start(tensor=int(tensor), pipeline=int(pipeline))
    folder = Path(result).parent / "model"
    if cluster.is_first_rank:
        make_model(folder, family, tied=True, head_dim=32)  # vLLM on CPU supports head sizes from 32
    dist.barrier()
    policy = Policy(folder, cluster, temperature=TEMPERATURE, dtype=dtype)
    config = GeneratorConfig(kv_cache_gib=0.1, tensor=int(generate))
    generator = Generator(policy, cluster, config, max_model_len=128, eos_token_id=0)
    policy.start_training(OptimConfig(lr=5e-3), num_steps=5)
    rng = np.random.default_rng(generator.replicas.index)
    prompts = [rng.integers(1, VOCAB, PROMPT_TOKENS).tolist() for _ in range(8)]

    pointers = generator.llm.apply_model(lambda m: {n: p.data_ptr() for n, p in m.named_parameters()})[0]
    ours = {name: tensor.data_ptr() for name, tensor in policy.vllm_parameters().items()}
    engine_dtypes = generator.llm.apply_model(lambda m: sorted({str(p.dtype) for p in m.parameters()}))[0]
    means, largest, versions = [], [], []
    for step in range(6):
        batches, rollouts = rollout_batches(generator, policy, cluster, prompts, seed=step)
        mean, worst = differences(policy, batches)
        means.append(mean)
        largest.append(worst)
        versions.append(rollouts[0].weight_version)
        if step < 5:
            policy.update(batches, supervised_loss)
            generator.weights_updated()
            generator.verify()
    after = generator.llm.apply_model(lambda m: {n: p.data_ptr() for n, p in m.named_parameters()})[0]

    def same_tokens() -> bool:
        first, second = (
            generator.generate(prompts, num_samples=2, max_new_tokens=24, temperature=1.0, seed=9)
            for _ in range(2)
        )
        return all((a.response_ids == b.response_ids).all() for a, b in zip(first, second, strict=True))

    everyone: list = [None] * cluster.world_size
    dist.all_gather_object(everyone, (means, largest))
    report = {
        "mean_differences": [of_rank[0] for of_rank in everyone],
        "max_differences": [of_rank[1] for of_rank in everyone],
        "engine_dtypes": engine_dtypes,
        "versions": versions,
        "same_storage": pointers == ours == after,
        "num_shared": len(ours),
        "repeatable": same_tokens(),
        "seeds": seeds_of_every_rank(cluster),
        "detects_tampering": detects_tampering(generator),
    }
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    dist.barrier()
    generator.close()
    cluster_module.stop()


def seeds_of_every_rank(cluster) -> list[list[list[int]]]:
    """[rank][call]: what vLLM's second model runner, CUDA's, seeds three requests with; calls with seeds 1, 1, 2.

    A CPU has no memory that a GPU reads, too: there the runner's buffers are ordinary ones.
    """
    from vllm import SamplingParams
    from vllm.v1.worker.gpu import buffer_utils
    from vllm.v1.worker.gpu.sample.states import SamplingStates

    def seeds(seed: int) -> list[int]:
        on_cpu = cluster.device.type == "cpu"
        with mock.patch.object(buffer_utils, "is_uva_available", lambda: False) if on_cpu else nullcontext():
            states = SamplingStates(max_num_reqs=3, vocab_size=VOCAB)
        with seeded(seed, cluster.device):
            for index in range(3):
                states.add_request(index, SamplingParams(temperature=TEMPERATURE, logprobs=0))
        return states.seeds.np.tolist()

    np.random.seed(cluster.rank)
    before = np.random.get_state()[1].tolist()
    mine = [seeds(1), seeds(1), seeds(2)]
    assert np.random.get_state()[1].tolist() == before, "the process's own random numbers are not touched"
    everyone: list = [None] * cluster.world_size
    dist.all_gather_object(everyone, mine)
    return everyone


def detects_tampering(generator) -> bool:
    """Give the engine a private copy of one weight, one bit off: `verify` must stop the run."""

    def tamper(model) -> None:
        norm = model.model.norm
        copy = norm.weight.data.clone()
        copy.view(torch.int16 if copy.element_size() == 2 else torch.int32)[3] ^= 1
        norm._parameters["weight"] = torch.nn.Parameter(copy, requires_grad=False)

    generator.llm.apply_model(tamper)
    try:
        generator.verify()
    except RuntimeError as error:
        return "model.norm.weight" in str(error)
    return False


if __name__ == "__main__":
    main(*sys.argv[1:])
