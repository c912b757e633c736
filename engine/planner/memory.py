"""Closed formulas: what one rank of a job holds in each phase of a step, in bytes.

Symbols (per rank): t, p, c, d: tensor-, pipeline-, context-, data-parallel sizes. P: parameters held, padded as
Megatron's flat buffers pad them. n = token_budget / c tokens of a micro-batch; n' = n / t under sequence
parallelism, else n. h, f: hidden and MLP width; N, G: query heads and groups over t; D: head size; V: padded
vocabulary. b: bytes of a weight (2 for bf16, 4 for fp32).

    weights      b P                 gradients   4 P (summed in fp32, whole on every data-parallel rank)
    optimizer    12 P / (d c) in bf16 (master weights, two moments), 8 P / (d c) in fp32 (masters are the weights)
    activations  b (4 n' h + n D ((N + 2G) + (N + G) + N) + 5 n f / t) a layer; with recomputation n' h a layer
                 and the above for one layer at a time
    workspace    the larger of: a layer's pass (the gradients 2 n f / t + 2 n' h; the layer's activations where
                 recomputed); the logprobs (a chunk of logits of 320 MiB and its gradient, the head's fp32
                 gradient, hidden states in fp32)
    KV cache     2 b D G / t_generate a token and layer

Phases: `generate`; `sync` (gather path alone: the engine takes the new weights); `logprobs` (old and reference
logprobs, where a run needs them); `learn` (forward and backward); `update` (the optimizer step). PPO's critic is a
model of its own, held beside the policy by the same formulas (its head is one row), and has two phases more:
`values`, and `critic` (forward, backward and step). A judge on the same devices is there throughout, or, if
it sleeps, while generating (judges.py).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ralign.engine.planner.judges import GIB, ResidentJudge
from ralign.engine.planner.shapes import Shape, shape_of_folder

if TYPE_CHECKING:
    from ralign.engine.config import Run

PHASES = ("generate", "sync", "logprobs", "values", "critic", "learn", "update")
ENGINE_BATCH_TOKENS = 8192  # vLLM's chunk of prefill: tokens of one forward pass while generating
BYTES = {"bf16": 2, "fp32": 4}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run on a number of processes, as the formulas see it; `Job.of` makes it from a recipe's settings."""

    shape: Shape
    world_size: int
    tensor: int
    pipeline: int
    context: int
    sequence: bool
    recompute: bool
    dtype: str
    generate_tensor: int
    token_budget: int
    max_prompt_tokens: int
    max_new_tokens: int
    num_prompts: int
    num_samples: int
    num_updates: int
    has_reference: bool
    max_num_seqs: int
    bucket_bytes: int
    reserve_bytes: int
    utilization: float
    kv_bytes: int  # 0: what is left of `utilization`
    offload: str  # auto, never, always
    kv_sleep: str
    critic: Shape | None = None  # PPO's, cut as the policy is
    judge: ResidentJudge | None = None  # where it shares the devices

    @classmethod
    def of(cls, run: "Run", world_size: int, shape: Shape) -> "Job":
        parallel, generator, memory = run.parallel, run.generator, run.memory
        start = shape_of_folder(run.critic.hf_path, "critic.hf_path") if run.critic.hf_path else shape
        return cls(
            shape=shape,
            world_size=world_size,
            tensor=parallel.tensor,
            pipeline=parallel.pipeline,
            context=parallel.context,
            sequence=parallel.sequence,
            recompute=parallel.recompute,
            dtype=parallel.dtype,
            generate_tensor=generator.tensor or parallel.tensor,
            token_budget=run.token_budget,
            max_prompt_tokens=run.data.max_prompt_tokens,
            max_new_tokens=max(generator.max_new_tokens, run.eval.max_new_tokens),
            num_prompts=run.algo.num_prompts,
            num_samples=run.algo.num_samples,
            num_updates=run.algo.num_updates,
            has_reference=run.algo.kl_coef > 0,
            max_num_seqs=generator.max_num_seqs,
            bucket_bytes=memory.bucket_mib * 2**20,
            reserve_bytes=int(memory.reserve_gib * GIB),
            utilization=generator.gpu_memory_utilization,
            kv_bytes=int(generator.kv_cache_gib * GIB),
            offload=memory.offload,
            kv_sleep=memory.kv_sleep,
            critic=start.as_critic() if run.has_critic else None,
            judge=ResidentJudge.of(run),
        )

    def of_critic(self) -> "Job":
        """The critic as a job of its own."""
        return replace(self, shape=self.critic, critic=None)

    @property
    def data(self) -> int:
        return self.world_size // (self.tensor * self.pipeline * self.context)

    @property
    def shares_weights(self) -> bool:
        """The generator reads the trainer's own memory: same tensor-parallel size, every layer on each rank."""
        return self.generate_tensor == self.tensor and self.pipeline == 1

    @property
    def num_replicas(self) -> int:
        """Engines in the job."""
        return self.world_size // self.generate_tensor

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of one rank's part of a micro-batch (n)."""
        return -(-self.token_budget // self.context)

    @property
    def weight_bytes(self) -> int:
        return BYTES[self.dtype]

    @property
    def sequence_bytes(self) -> int:
        """KV cache of one sequence of the greatest length, on one rank of an engine."""
        return (self.max_prompt_tokens + self.max_new_tokens) * self.kv_token_bytes

    @property
    def kv_token_bytes(self) -> int:
        shape = self.shape
        groups = max(shape.num_query_groups // self.generate_tensor, 1)
        return 2 * shape.num_layers * groups * shape.head_dim * self.weight_bytes


def num_held(job: Job, stage: int) -> int:
    """P: elements of Megatron's flat parameter buffer on a rank of this stage, padding included.

    Parameters are laid out from the last to the first, each start aligned to 64 elements; a bucket's end is
    padded to a multiple of 128 and of the ranks that share its optimizer state. All are one bucket (gradients
    are reduced when all are there), but for a tied embedding that two stages hold: that has its own.
    """
    shape, ranks = job.shape, job.data * job.context
    embedding, layers, head = shape.parts(tensor=job.tensor, pipeline=job.pipeline, stage=stage)
    sizes = [*embedding, *layers, *head]
    tied_over_stages = shape.tie_embeddings and job.pipeline > 1
    alone = ({0} if embedding else set()) | ({len(sizes) - 1} if len(head) == 2 else set())
    alone = alone if tied_over_stages else set()
    multiple = math.lcm(ranks, 128)
    end = bucket_start = 0
    for index in reversed(range(len(sizes))):
        end = _pad(end, 64)
        if index in alone and end > bucket_start:
            end = bucket_start = _pad(end, multiple)
        end += sizes[index]
        if index in alone:
            end = bucket_start = _pad(end, multiple)
    return _pad(end, multiple)


def _pad(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def layer_activation_bytes(job: Job, *, on_gpu: bool = True) -> int:
    """What one layer keeps for its backward pass, for one micro-batch.

    Norm inputs and outputs; fused QKV, rotated q and k (on CPU gathered q, k, v instead), attention's output
    (on CPU also its padded form); gate and up, the up half once more, silu, and their product.
    """
    shape, n = job.shape, job.micro_batch_tokens
    split = n // job.tensor if job.sequence else n
    heads, groups = shape.num_attention_heads // job.tensor, max(shape.num_query_groups // job.tensor, 1)
    width = shape.head_dim
    # Context parallelism: the layer attends over all ranks' keys and values.
    keys = groups * job.context
    if on_gpu:
        attention = (heads + 2 * groups) + (heads + keys) + heads + (keys if job.context > 1 else 0)
    else:
        attention = (heads + 2 * groups) + (heads + 2 * keys) + 2 * heads
    mlp = 5 * shape.ffn_hidden_size // job.tensor
    return job.weight_bytes * (4 * split * shape.hidden_size + n * (attention * width + mlp)) + 4 * n * heads


def activation_bytes(job: Job, stage: int, *, on_gpu: bool = True) -> int:
    """What autograd keeps at the end of the forward passes that a stage has in flight (`learn`)."""
    shape = job.shape
    in_flight = job.pipeline - stage  # one forward, one backward: earlier stages run ahead
    hidden = _hidden_bytes(job)
    layer = hidden if job.recompute else layer_activation_bytes(job, on_gpu=on_gpu)
    top = 2 * hidden if stage == job.pipeline - 1 else 0  # the final norm's input and output
    return in_flight * shape.num_layers // job.pipeline * layer + top


def workspace_bytes(job: Job, stage: int, *, backward: bool, on_gpu: bool = True) -> int:
    """The most that is held beside it at any moment: one layer's pass, or the log-probabilities."""
    shape, n, hidden = job.shape, job.micro_batch_tokens, _hidden_bytes(job)
    gathered = job.weight_bytes * n * shape.hidden_size if job.sequence else 0  # one all-gather at a time
    mlp = job.weight_bytes * n * shape.ffn_hidden_size // job.tensor
    if not backward:
        layer = 5 * mlp + 3 * hidden
    else:
        layer = 2 * mlp + 2 * hidden  # gradients of gate and up, and of what the layer added to
        if job.recompute:
            layer += layer_activation_bytes(job, on_gpu=on_gpu) - hidden
    head = logprob_bytes(job, backward=backward, on_gpu=on_gpu) if stage == job.pipeline - 1 else 0
    return max(layer + gathered, head)


def _hidden_bytes(job: Job) -> int:
    """The residual stream of one micro-batch on one rank."""
    tokens = job.micro_batch_tokens // job.tensor if job.sequence else job.micro_batch_tokens
    return job.weight_bytes * tokens * job.shape.hidden_size


def logprob_bytes(job: Job, *, backward: bool, on_gpu: bool = True) -> int:
    """Workspace of linear_logprob on the last stage: chunks of logits, and in backward the head's gradient."""
    shape, n = job.shape, job.micro_batch_tokens
    if shape.is_critic:  # the head and the hidden states in fp32, and their gradients
        wide = 4 * n * shape.hidden_size if job.dtype == "bf16" else 0
        return wide + backward * (wide + _hidden_bytes(job))
    columns = shape.padded_vocab_size // job.tensor
    rows = (320 if on_gpu else 128) * 2**20 // (4 * columns)  # its auto_chunk_tokens
    share = job.max_new_tokens / (job.max_prompt_tokens + job.max_new_tokens)
    chunk = min(max(rows // 64 * 64, 64), 1024, max(int(n * share), 1))
    # fp32 logits and, on a GPU, their gradient in the weights' dtype; on a CPU logits, probabilities, gradient.
    logits = (4 + job.weight_bytes if on_gpu else 12) * chunk * columns + 2 * _hidden_bytes(job)
    gathered = job.weight_bytes * n * shape.hidden_size if job.sequence else 0
    if not backward:
        return logits + gathered
    head = (4 + (job.weight_bytes if job.dtype == "bf16" else 0)) * columns * shape.hidden_size
    wide = 4 if job.tensor > 1 else job.weight_bytes
    return logits + gathered + head + (wide + job.weight_bytes) * n * shape.hidden_size


def engine_workspace_bytes(job: Job) -> int:
    """vLLM's activations of one pass and the fp32 logits of all sequences (gathered over the vocabulary)."""
    shape = job.shape
    tokens = max(ENGINE_BATCH_TOKENS, job.max_num_seqs)
    mlp = 3 * shape.ffn_hidden_size // job.generate_tensor
    return tokens * (mlp + 4 * shape.hidden_size) * job.weight_bytes + 3 * 4 * (
        job.max_num_seqs * shape.padded_vocab_size
    )


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """One rank's memory by phase.

    Attributes:
        phases: phase -> holder -> bytes on the device.
        host: holder -> bytes of pinned host memory this rank takes.
        offload, kv_sleep: what was decided where the settings say auto.
        capacity_bytes: memory of the device.
        stage: the pipeline stage that this is (the fullest one).
        kv_bytes: size of the KV cache while generating.
    """

    phases: Mapping[str, Mapping[str, int]]
    host: Mapping[str, int]
    offload: bool
    kv_sleep: bool
    capacity_bytes: int
    stage: int
    kv_bytes: int
    needs: tuple[str, ...] = field(default=())

    def total_bytes(self, phase: str) -> int:
        return sum(self.phases[phase].values())

    @property
    def peak_phase(self) -> str:
        return max(self.phases, key=self.total_bytes)

    @property
    def host_bytes(self) -> int:
        return sum(self.host.values())

    def problems(self) -> list[str]:
        """Why this cannot run on such a device, in words with numbers; empty when it fits."""
        found = [
            f"{phase} needs {self.total_bytes(phase) / GIB:.1f} GiB of {self.capacity_bytes / GIB:.1f} GiB"
            for phase in self.phases
            if self.total_bytes(phase) > self.capacity_bytes
        ]
        return found + list(self.needs)


def ledger(job: Job, capacity_bytes: int, *, on_gpu: bool = True) -> Ledger:
    """The ledger of the fullest pipeline stage on a device of this size."""
    stages = [_stage_ledger(job, stage, capacity_bytes, on_gpu) for stage in range(job.pipeline)]
    return max(stages, key=lambda rank: rank.total_bytes(rank.peak_phase))


def _stage_ledger(job: Job, stage: int, capacity_bytes: int, on_gpu: bool) -> Ledger:
    """Decides what moves: nothing that need not."""
    held = num_held(job, stage)
    wanted = job.kv_bytes or wanted_kv_bytes(job)

    def of(offload: bool, kv_sleep: bool) -> Ledger:
        return _phases(job, stage, held, capacity_bytes, offload, kv_sleep, on_gpu)

    offload = job.offload == "always"
    if job.offload == "auto":
        offload = of(False, True).kv_bytes < wanted or bool(of(False, True).problems())
    kv_sleep = job.kv_sleep == "always"
    if job.kv_sleep == "auto":
        kv_sleep = bool(of(offload, False).problems())
    return of(offload, kv_sleep)


def wanted_kv_bytes(job: Job) -> int:
    """A KV cache that keeps every sequence of a step decoding at once, at three quarters of the full length."""
    num_sequences = min(job.max_num_seqs, -(-job.num_prompts * job.num_samples // job.num_replicas))
    return max(job.sequence_bytes, num_sequences * job.sequence_bytes * 3 // 4)


def _phases(
    job: Job, stage: int, held: int, capacity: int, offload: bool, kv_sleep: bool, on_gpu: bool
) -> Ledger:
    weights, gradients, optimizer = _held_bytes(job, held)
    base, trained = {"weights": weights}, {"gradients": gradients, "optimizer": optimizer}
    critic = job.of_critic() if job.critic else None
    if critic:
        names = ("critic_weights", "critic_gradients", "critic_optimizer")
        of_critic = dict(zip(names, _held_bytes(critic, num_held(critic, stage)), strict=True))
        base["critic_weights"] = of_critic.pop("critic_weights")
        trained |= of_critic
    if not job.shares_weights:
        parts = job.shape.parts(tensor=job.generate_tensor, pipeline=1, stage=0)
        base["engine_weights"] = job.weight_bytes * sum(map(sum, parts))
    judge = job.judge.held(capacity, on_gpu=on_gpu) if job.judge else {}
    sleeps = on_gpu and job.judge is not None and job.judge.sleep_level > 0
    base |= {} if sleeps else judge
    base["reserve"] = job.reserve_bytes
    resident = {} if offload else trained
    generate = {**base, **judge, **resident, "engine_workspace": engine_workspace_bytes(job)}
    left = int(job.utilization * capacity) - sum(generate.values())
    kv = job.kv_bytes or max(min(left, 2 * wanted_kv_bytes(job)), 0)
    cache = {} if kv_sleep else {"kv_cache": kv}
    phases = {"generate": {**generate, "kv_cache": kv}}
    if job.num_updates > 1 or job.has_reference:
        workspace = workspace_bytes(job, stage, backward=False, on_gpu=on_gpu)
        phases["logprobs"] = {**base, **trained, **cache, "workspace": workspace}
        if job.has_reference:
            phases["logprobs"]["own_weights"] = weights  # kept aside while the reference's are in place
    everything = {**base, **trained, **cache}
    phases["learn"] = everything | _pass_bytes(job, stage, on_gpu)
    phases["update"] = everything | {"optimizer_workspace": _step_bytes(job, held, on_gpu)}
    if critic:
        forward = workspace_bytes(critic, stage, backward=False, on_gpu=on_gpu)
        phases["values"] = everything | {"workspace": forward}
        learning = _pass_bytes(critic, stage, on_gpu)
        step = {"optimizer_workspace": _step_bytes(critic, num_held(critic, stage), on_gpu)}
        phases["critic"] = everything | max(learning, step, key=lambda parts: sum(parts.values()))
    if not job.shares_weights:
        phases["sync"] = {**base, **trained, **cache, "bucket": job.bucket_bytes}
    host = {"checkpoint": 12 * (held // (job.data * job.context))}  # a copy to write while the run goes on
    if critic:
        host["checkpoint"] += 12 * (num_held(critic, stage) // (job.data * job.context))
    if offload:
        host |= {name: size for name, size in trained.items() if name.endswith("optimizer")}
    if job.has_reference:
        host["reference"] = weights
    if sleeps and job.judge.sleep_level == 1:
        host["judge"] = job.judge.weight_bytes
    needs = job.judge.needs(capacity, on_gpu=on_gpu) if job.judge else []
    if kv < job.sequence_bytes:
        needs.append(
            f"generate leaves {kv / GIB:.2f} GiB for the KV cache, one sequence of "
            f"{job.max_prompt_tokens + job.max_new_tokens} tokens needs {job.sequence_bytes / GIB:.2f} GiB"
        )
    return Ledger(
        phases={phase: phases[phase] for phase in PHASES if phase in phases},
        host=host,
        offload=offload,
        kv_sleep=kv_sleep,
        capacity_bytes=capacity,
        stage=stage,
        kv_bytes=kv,
        needs=tuple(needs),
    )


def _held_bytes(job: Job, held: int) -> tuple[int, int, int]:
    """Weights, gradients and optimizer state of a model with this many parameters on a rank."""
    optimizer = (12 if job.dtype == "bf16" else 8) * (held // (job.data * job.context))
    return job.weight_bytes * held, 4 * held, optimizer


def _pass_bytes(job: Job, stage: int, on_gpu: bool) -> dict[str, int]:
    return {
        "activations": activation_bytes(job, stage, on_gpu=on_gpu),
        "workspace": workspace_bytes(job, stage, backward=True, on_gpu=on_gpu),
    }


def _step_bytes(job: Job, held: int, on_gpu: bool) -> int:
    """CUDA: the root of the second moment, for all parameters at once. CPU: gloo's copy of the gathered weights."""
    return 4 * (held // (job.data * job.context)) if on_gpu else job.weight_bytes * held
