"""How often the host waits for the device in a whole step, counted where a device would make it wait.

On CUDA these stop the host: reading a number (item, tolist, bool, float, int, numpy, copies to the CPU), ops whose
output size is data (nonzero, indexing with a mask) and synchronize. The same calls are counted on CPU, but for what a
GPU run does not do on the device: `Trainer.plan`'s numbers, Adam's step and collectives of Python objects are in host
memory, ops that are Triton kernels read no number, and varlen attention reads its lengths on the device. Generation is
scripted: what vLLM waits for is its own affair.
"""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime import cuda_stand_in
from ralign.engine.training.trainer import Trainer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from worlds import make_stage

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"}
DATA_SIZES = {"nonzero", "masked_select", "unique2", "_unique2", "equal"}
ON_HOST = {"plan", "_buckets", "all_gather_object", "broadcast_object_list"}  # functions; see above


class Count:
    """Waits by place, without those for host tensors."""

    def __init__(self, host_tensors: set[int]):
        self.host_tensors, self.places = host_tensors, []

    def add(self, name: str, tensor=None) -> None:
        if id(tensor) in self.host_tensors:
            return
        stack = traceback.extract_stack()
        if any(f.name in ON_HOST or f.name.endswith("_torch") for f in stack):
            return
        ours = [
            f
            for f in stack
            if any(part in f.filename for part in ("/engine/", "/kernels/", "megatron"))
            and not f.filename.endswith("cuda_stand_in.py")
        ]
        self.places.append(f"{name} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else name)


class CountReads(TorchFunctionMode):
    """Reads that Python code asks for."""

    def __init__(self, count: Count):
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in READS and args and isinstance(args[0], torch.Tensor):
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
        if masks or name in DATA_SIZES:
            self.count.add(name, args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(trainer: Trainer) -> Iterator[list[str]]:
    """The places, filled as they are met."""
    count = Count(
        {
            id(state["step"])
            for model in trainer.models.values()
            for distributed in model.optimizer.chained_optimizers
            for state in distributed.optimizer.state.values()
        }
    )
    counted = {"torch.cuda.synchronize": lambda *_, **__: count.add("synchronize")}
    with mock.patch.dict(cuda_stand_in._PATCHES, counted), CountReads(count), CountDataSizes(count):
        yield count.places


def waits_of_a_step(folder: Path, kind: str, dtype: str) -> dict:
    """Of the third step: the first makes Adam's state and proves the weights, PPO's first trains the critic alone."""
    _, _, trainer = make_stage(folder, kind, {"pipeline": dist.get_world_size()}, dtype, num_steps=2)
    trainer.run = replace(trainer.run, token_budget=512)
    packed = []
    make_batches = trainer.pack
    trainer.pack = lambda samples: packed.append(make_batches(samples)) or packed[-1]
    trainer.step()
    trainer.step()
    packed.clear()
    with counting(trainer) as places:
        trainer.step()
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, places)
    return {"num_micro_batches": [len(batches) for batches in packed], "places": every}


def main(result: str) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start()
    folder = Path(result).parent
    report = {
        f"{kind} {dtype}": waits_of_a_step(folder, kind, dtype)
        for kind, dtype in (("rl", "fp32"), ("rl", "bf16"), ("ppo", "bf16"))
    }
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
