"""The proof by computation, and engines that compute with a private copy of one weight; result to argv[1].

argv[2:]: dtype, the trainer's tensor-parallel size, the generator's (0: the same).
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator.generator import Generator
from ralign.engine.generator.vllm_internals import layer_errors
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import make_model
from torch.nn import functional as F

TEMPERATURE = 0.7


def packed_privately(model, name: str):
    """The layer `name` computes with a copy of its weight from now on; returns what takes that back."""
    layer = model.get_submodule(name)
    reads_parameter, copy = layer.cpu_linear, layer.weight.detach().clone()
    layer.cpu_linear = lambda x, weight, bias: F.linear(x, copy, bias)
    return lambda: setattr(layer, "cpu_linear", reads_parameter)


def is_stopped(policy, generator, name: str) -> bool:
    """Whether the proof finds that the layer computes with a copy of its weight."""
    generator.wake()  # on the gather path the last proof left scrambled weights
    kept: list = []
    generator.llm.apply_model(lambda model: kept.append(packed_privately(model, name)))
    try:
        generator.prove()
    except RuntimeError as error:
        return f"first {name} " in str(error)
    finally:
        kept[0]()
    return False


def checksums_see_it(generator, name: str) -> bool:
    """Whether `verify` finds the same: it does not, which is why there is a proof by computation."""
    kept: list = []
    generator.llm.apply_model(lambda model: kept.append(packed_privately(model, name)))
    try:
        generator.verify()
    except RuntimeError:
        return True
    finally:
        kept[0]()
    return False


def main(result: str, dtype: str, tensor: int, generate: int = 0) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start(tensor=tensor)
    folder = Path(result).parent / "model"
    if cluster.is_first_rank:
        make_model(folder, "qwen3", tied=True, head_dim=32, initializer_range=0.02)
    dist.barrier()
    policy = Policy(folder, cluster, temperature=TEMPERATURE, dtype=dtype)
    config = GeneratorConfig(kv_cache_gib=0.1, tensor=generate)
    generator = Generator(policy, cluster, config, max_model_len=128, eos_token_id=0)
    before = {name: weight.clone() for name, weight in policy.vllm_parameters().items()}
    generator.wake()
    report = {"difference": generator.prove()}
    after = policy.vllm_parameters()
    report["restored"] = all(torch.equal(weight, before[name]) for name, weight in after.items())
    generator.verify()
    layers = list(generator.llm.apply_model(layer_errors)[0])
    report["stopped"] = {name: is_stopped(policy, generator, name) for name in layers}
    report["checksums_see_it"] = checksums_see_it(generator, layers[1])
    generator.wake()
    report["repeated"] = generator.prove()
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    dist.barrier()
    generator.close()
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
