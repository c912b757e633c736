"""What Megatron and autograd allocate on this rank in each phase, beside what the planner predicts; bytes.

On CUDA every layout is in bf16: the formulas for a GPU count varlen attention, which refuses fp32.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from measure import peak_bytes
from ralign.engine.algorithms.losses import ValueLoss, supervised_loss
from ralign.engine.config.algo import AlgoConfig, OptimConfig
from ralign.engine.config.run import DataConfig, GeneratorConfig, ParallelConfig, Run
from ralign.engine.data.packing import Sample
from ralign.engine.planner.formulas import num_held, pass_bytes, step_bytes
from ralign.engine.planner.job import Job
from ralign.engine.planner.memory import _stage_ledger
from ralign.engine.planner.shapes import shape_of_hf
from ralign.engine.policy.critic import Critic
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import make_model, pack

PROMPT, RESPONSE, NUM_SAMPLES = 64, 192, 4
LAYOUTS = {
    1: {"one": {}, "one, recompute": {"recompute": True}},
    2: {
        "tp2 sequence parallel": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2},
        "dp2 bf16": {"dtype": "bf16"},
        "cp2": {"context": 2},
    },
}


def storage_bytes(tensors) -> int:
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}
    return sum(storages.values())


def least_peak(function) -> int:
    """Of several calls: gloo frees what it sent when it comes to it."""
    return min(peak_bytes(function) for _ in range(2))


def compare(folder: Path, of_critic: bool, **parallel) -> dict:
    layout = ParallelConfig(**parallel)
    cluster = cluster_module.start(tensor=layout.tensor, pipeline=layout.pipeline, context=layout.context)
    on_gpu = cluster.device.type == "cuda"
    if on_gpu:
        layout.dtype = "bf16"
    kind = Critic if of_critic else Policy
    policy = kind(
        folder, cluster, dtype=layout.dtype, sequence_parallel=layout.sequence, recompute=layout.recompute
    )
    policy.start_training(OptimConfig(lr=1e-3), 5)
    rng = np.random.default_rng(0)
    samples = [
        Sample(
            prompt_ids=rng.integers(1, 1000, PROMPT),
            response_ids=rng.integers(1, 1000, RESPONSE),
            per_response_token={},
            per_sample={"weights": 1e-3, "values": 0.0, "returns": 1.0},
        )
        for _ in range(NUM_SAMPLES)
    ]
    budget = NUM_SAMPLES // 2 * (PROMPT + RESPONSE)
    batches = pack(samples, cluster, token_budget=budget, pad_multiple=policy.pad_multiple)
    loss = ValueLoss(0.2) if of_critic else supervised_loss
    policy.update(batches, loss)  # Adam's moments come with the first step
    run = Run(
        token_budget=budget,
        parallel=layout,
        data=DataConfig(max_prompt_tokens=PROMPT),
        generator=GeneratorConfig(max_new_tokens=RESPONSE),
        algo=AlgoConfig(kl_coef=0.1, advantages="gae" if of_critic else "grpo"),
    )
    run.eval.max_new_tokens = RESPONSE
    run.memory.reserve_gib = 0.0
    shape = shape_of_hf(json.loads((folder / "config.json").read_text()))
    job = Job.of(run, cluster.world_size, shape)
    phases = _stage_ledger(job, cluster.pp_rank, 1 << 40, on_gpu=on_gpu).phases
    learn, update, logprobs = phases["learn"], phases["update"], phases["logprobs"]
    if of_critic:
        job = job.of_critic()
        holders = ("weights", "gradients", "optimizer")
        learn = {name: phases["critic"][f"critic_{name}"] for name in holders}
        learn |= pass_bytes(job, cluster.pp_rank, on_gpu=on_gpu)
        update = {"optimizer_workspace": step_bytes(job, num_held(job, cluster.pp_rank), on_gpu=on_gpu)}
        logprobs = phases["values"]
    state = [x for row in policy.optimizer.optimizer.state.values() for x in row.values() if x.ndim]
    masters = [x for group in policy.optimizer.optimizer.param_groups for x in group["params"]]
    if layout.dtype == "fp32":
        masters = []  # views of the weights
    measured = {
        "held": sum(buffer.numel for buffer in policy.model.buffers),
        "weights": storage_bytes(buffer.param_data for buffer in policy.model.buffers),
        "gradients": storage_bytes(buffer.grad_data for buffer in policy.model.buffers),
        "optimizer": storage_bytes(state + masters),
        "learn": least_peak(lambda: policy.forward_backward(batches, loss)),
        "logprobs": least_peak(lambda: policy.outputs(batches[:2])),
        "update": least_peak(policy.optimizer_step),
    }
    resident = measured["weights"] + measured["gradients"] + measured["optimizer"]
    predicted = {
        "held": num_held(job, cluster.pp_rank),
        **{name: learn[name] for name in ("weights", "gradients", "optimizer")},
        "learn": learn["activations"] + learn["workspace"],
        "logprobs": logprobs["workspace"],
        "update": update["optimizer_workspace"],
    }
    return {"measured": measured, "predicted": predicted, "resident": resident}


def main(result: str) -> None:
    torch.set_num_threads(1)
    world = cluster_module.start()
    folder = Path(result).parent / "model"
    if world.is_first_rank:
        make_model(
            folder, "qwen3", tied=False, hidden_size=256, intermediate_size=768, head_dim=32, vocab_size=2000,
            max_position_embeddings=1024,
        )  # fmt: skip
        make_model(
            folder.with_name("tied"), "qwen2", tied=True, hidden_size=256, intermediate_size=768,
            num_hidden_layers=2, vocab_size=2000, max_position_embeddings=1024,
        )  # fmt: skip
    dist.barrier()
    cases = {name: (folder, False, layout) for name, layout in LAYOUTS[world.world_size].items()}
    if world.world_size == 2:
        cases["tied pp2"] = (folder.with_name("tied"), False, {"pipeline": 2})
        cases |= {f"critic {name}": (folder, True, layout) for name, layout in LAYOUTS[2].items()}
        cases["critic of a tied model, tp2"] = (folder.with_name("tied"), True, {"tensor": 2})
    report = {}
    for name, (where, of_critic, layout) in cases.items():
        rows: list = [None] * world.world_size
        dist.all_gather_object(rows, compare(where, of_critic, **layout))
        report[name] = rows
    if world.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
