"""How often the host waits for the device in an update, counted where a device would make it wait.

On CUDA these stop the host: reading a number (item, tolist, bool, float, int, numpy, copies to the CPU) and ops
whose output size is data (nonzero, indexing with a mask). The same calls are counted on CPU, but for what a GPU
run does not do on the device: reading Adam's step, a host tensor, and the CPU's own attention, which is replaced
by one that needs no lengths.
"""

import json
import sys
import traceback
from pathlib import Path

import torch
from ralign.engine import cluster as cluster_module
from ralign.engine.config import AlgoConfig, OptimConfig, Run
from ralign.engine.losses import ReinforceLoss
from ralign.engine.policy import attention
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.policy import Policy
from ralign.engine.ppo import PPO
from ralign.engine.trainer import pack
from tiny import make_model, make_samples
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"}


class Count:
    """Reads by place, without those of host tensors."""

    def __init__(self, host_tensors: set[int]):
        self.host_tensors, self.places = host_tensors, []

    def add(self, name: str, tensor) -> None:
        if not isinstance(tensor, torch.Tensor) or id(tensor) in self.host_tensors:
            return
        frames = [
            f
            for f in traceback.extract_stack()
            if "ralign" in f.filename
            or "/engine/" in f.filename
            or "/kernels/" in f.filename
            or "megatron" in f.filename
        ]
        stack = traceback.extract_stack()
        if any(f.name == "all_gather_object" or f.name.endswith("_torch") for f in stack):
            return  # gloo's collectives of Python objects are on the host; on a GPU these ops are Triton kernels
        frames = [f for f in frames if not f.filename.endswith("cluster.py")]  # fmt: skip
        frame = frames[-1] if frames else None
        self.places.append(f"{name} at {Path(frame.filename).name}:{frame.lineno}" if frame else name)


class CountReads(TorchFunctionMode):
    """Reads that Python code asks for."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and args:
            self.count.add(name, args[0])
        return func(*args, **(kwargs or {}))


class CountDataSizes(TorchDispatchMode):
    """Ops whose output size depends on values, and numbers read from inside other ops."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if masks or name in ("nonzero", "masked_select", "unique2", "_unique2", "equal"):
            self.count.add(name, args[0])
        return func(*args, **(kwargs or {}))


def same_length_attention(query, key, value, packed):
    """Stands in for a varlen kernel, which reads cu_seqlens on the device: all sequences have LENGTH tokens."""
    q, k, v = (x.view(-1, LENGTH, *x.shape[1:]).transpose(1, 2) for x in (query, key, value))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).reshape(query.shape)


LENGTH = 32


def reads_of_ppo(critic: Critic, samples, cluster) -> dict:
    for sample in samples:
        sample.per_sample = {"weights": sample.per_sample["weights"], "rewards": 1.0}
    ppo = PPO(Run(algo=AlgoConfig(advantages="gae")), cluster, critic)
    batches = pack(samples, cluster, critic, 4 * LENGTH)
    ppo.add_advantages([batches])
    ppo.learn(batches)
    host = {
        id(state["step"])
        for distributed in critic.optimizer.chained_optimizers
        for state in distributed.optimizer.state.values()
    }
    before, update = Count(host), Count(host)
    with CountReads(before), CountDataSizes(before):
        ppo.add_advantages([batches])
    with CountReads(update), CountDataSizes(update):
        ppo.learn(batches)
    places = {"before_learning": before.places, "update": update.places}
    return {"num_micro_batches": len(batches), **places}


def main(result: str) -> None:
    torch.set_num_threads(1)
    attention._attention_by_length = same_length_attention
    cluster = cluster_module.start()
    folder = Path(result).parent / "model"
    make_model(folder, "qwen3", tied=True)
    report = {}
    for dtype in ("fp32", "bf16"):
        policy = Policy(folder, cluster, dtype=dtype)
        policy.start_training(OptimConfig(lr=1e-3, clip_grad=0.5), 5)
        samples = make_samples(16)
        for sample in samples:  # all of LENGTH tokens
            ids = [*sample.prompt_ids, *sample.response_ids, *range(1, 40)][:LENGTH]
            sample.prompt_ids, sample.response_ids = (torch.tensor(x).numpy() for x in (ids[:10], ids[10:]))
            values = sample.per_response_token["rollout_logprobs"]
            sample.per_response_token["rollout_logprobs"] = torch.tensor(values).new_full((22,), -5.0).numpy()
        batches = pack(samples, cluster, policy, 4 * LENGTH)
        loss = ReinforceLoss(AlgoConfig())
        policy.update(batches, loss)  # the first update makes Adam's state
        host = {
            id(state["step"])
            for distributed in policy.optimizer.chained_optimizers
            for state in distributed.optimizer.state.values()
        }
        count = Count(host)
        with CountReads(count), CountDataSizes(count):
            policy.logprobs(batches)
            num_before_learning = len(count.places)
            policy.update(batches, loss)
        report[dtype] = {
            "num_micro_batches": len(batches),
            "before_learning": count.places[:num_before_learning],
            "update": count.places[num_before_learning:],
        }
        report[f"PPO's critic, {dtype}"] = reads_of_ppo(
            Critic(folder, cluster, dtype=dtype), samples, cluster
        )
    Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
