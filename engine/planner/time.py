"""How long a step takes: FLOPs and bytes over peaks times stated efficiencies (`hardware.Constants`).

    learn       6 P tokens (8 P with recomputation) + attention's 12 l² terms, over all GPUs; pipeline bubble
                (m + p - 1) / m for m micro-batches; tensor-parallel collectives; gradient and weight exchange
    logprobs    2 P tokens, once for old logprobs (several updates), once for the reference
    values, critic   PPO: the critic's 2 P tokens, and its learn and update
    generate    decode steps × (weights and KV cache read once a step, or FLOPs where more) + prompts, each once
    update      28 bytes of optimizer traffic a parameter of this rank's share
    sync        gather path: bytes that an engine's rank receives; shared weights: nothing
    offload     optimizer state over the host link; the way back hides behind `learn`

The model orders layouts and says what dominates; it is not a promise to the second.
"""

from dataclasses import dataclass

from ralign.engine.planner.formulas import num_held
from ralign.engine.planner.hardware import Chip, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.memory import Ledger

SECONDS_A_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """Seconds of each phase of a step; `tokens` are prompt and response tokens of all its samples."""

    seconds: dict[str, float]
    tokens: float

    @property
    def total_s(self) -> float:
        return sum(self.seconds.values())

    @property
    def tokens_a_day(self) -> float:
        return self.tokens / self.total_s * SECONDS_A_DAY


def step_time(job: Job, plan: Ledger, chip: Chip, constants: Constants) -> StepTime:
    prompt, response = (
        job.max_prompt_tokens * constants.mean_prompt,
        job.max_new_tokens * constants.mean_response,
    )
    num_samples = job.num_prompts * job.num_samples
    tokens = num_samples * (prompt + response)
    length = prompt + response
    learn = _learn_s(job, chip, constants, tokens, length)
    seconds = {
        "generate": _generate_s(job, plan, chip, constants, prompt, response),
        "judge": constants.judge_s,
    }
    num_extra = int(job.num_updates > 1) + int(job.has_reference)
    if num_extra:
        seconds["logprobs"] = num_extra * _evaluate_s(job, chip, constants, tokens, length)
    if job.critic:
        critic = job.of_critic()
        seconds["values"] = _evaluate_s(critic, chip, constants, tokens, length)
        seconds["critic"] = _learn_s(critic, chip, constants, tokens, length)
        seconds["critic"] += job.num_updates * _update_s(critic, plan, chip, constants)
    seconds["learn"] = learn
    seconds["update"] = job.num_updates * _update_s(job, plan, chip, constants)
    seconds["sync"] = job.num_updates * _sync_s(job, chip, constants)
    if plan.offload:
        moved = sum(size for name, size in plan.host.items() if name.endswith("optimizer"))
        move = moved / (chip.host_link * constants.link_efficiency)
        seconds["offload"] = move + max(0.0, move - learn)
    return StepTime(seconds=seconds, tokens=tokens)


def _learn_s(job: Job, chip: Chip, constants: Constants, tokens: float, length: float) -> float:
    """Forward and backward passes over all of a step's tokens."""
    forward = _forward_s(job, chip, constants, tokens, length)
    seconds = (4 if job.recompute else 3) * forward * _bubble(job, tokens)
    seconds += _tensor_communication_s(job, chip, constants, tokens, passes=6 if job.recompute else 4)
    return seconds + _context_communication_s(job, chip, constants, tokens)


def _evaluate_s(job: Job, chip: Chip, constants: Constants, tokens: float, length: float) -> float:
    """One forward pass over them."""
    forward = _forward_s(job, chip, constants, tokens, length) * _bubble(job, tokens)
    return forward + _tensor_communication_s(job, chip, constants, tokens, passes=2)


def _forward_s(job: Job, chip: Chip, constants: Constants, tokens: float, length: float) -> float:
    """Forward FLOPs of a step's tokens, over all GPUs: 2 P a token, and 2 · 2 · N D l / 2 for causal attention."""
    shape = job.shape
    attention = 2 * length * shape.num_layers * shape.num_attention_heads * shape.head_dim
    flops = tokens * (2 * shape.num_parameters + attention)
    return flops / (chip.flops * constants.train_efficiency * job.world_size)


def _bubble(job: Job, tokens: float) -> float:
    num_micro_batches = max(tokens / (job.data * job.token_budget), 1.0)
    return (num_micro_batches + job.pipeline - 1) / num_micro_batches


def _link(ranks: int, chip: Chip, constants: Constants) -> float:
    """bytes/s of a collective over this many neighbouring ranks."""
    link = chip.node_link if ranks <= constants.gpus_per_node else chip.network_link
    return link * constants.link_efficiency


def _tensor_communication_s(
    job: Job, chip: Chip, constants: Constants, tokens: float, *, passes: int
) -> float:
    """Two all-reduces (or gather and scatter) of hidden states a layer and direction."""
    if job.tensor == 1:
        return 0.0
    shape = job.shape
    rank_tokens = tokens / (job.data * job.context)
    volume = passes * 2 * (job.tensor - 1) / job.tensor * rank_tokens * shape.hidden_size * job.weight_bytes
    volume *= shape.num_layers / job.pipeline
    return constants.exposed_communication * volume / _link(job.tensor, chip, constants)


def _context_communication_s(job: Job, chip: Chip, constants: Constants, tokens: float) -> float:
    """Keys and values of all ranks gathered in forward, their gradients scattered back."""
    if job.context == 1:
        return 0.0
    shape = job.shape
    groups = max(shape.num_query_groups // job.tensor, 1)
    volume = 3 * tokens / job.data * 2 * groups * shape.head_dim * job.weight_bytes
    volume *= shape.num_layers / job.pipeline * (job.context - 1) / job.context
    return volume / _link(job.tensor * job.context, chip, constants)


def _generate_s(
    job: Job, plan: Ledger, chip: Chip, constants: Constants, prompt: float, response: float
) -> float:
    shape, ranks = job.shape, job.generate_tensor
    num_samples = job.num_prompts * job.num_samples / job.num_replicas
    average = prompt + response / 2
    at_once = max(min(job.max_num_seqs, num_samples, plan.kv_bytes / (average * job.kv_token_bytes)), 1.0)
    # The longest answer is decoded to its end, however few are left beside it.
    num_steps = max(float(job.max_new_tokens), num_samples * response / at_once)
    busy = num_samples * response / num_steps  # sequences of an average step
    weights = shape.num_parameters * job.weight_bytes / ranks
    read = (weights + busy * average * job.kv_token_bytes) / (
        chip.memory_bandwidth * constants.decode_bandwidth
    )
    compute = 2 * shape.num_parameters * busy / (ranks * chip.flops * constants.prefill_efficiency)
    communication = 0.0
    if ranks > 1:
        volume = 2 * (ranks - 1) / ranks * busy * shape.hidden_size * job.weight_bytes
        each = constants.collective_latency_s + volume / _link(ranks, chip, constants)
        communication = 2 * shape.num_layers * each
    prefill = 2 * shape.num_parameters * job.num_prompts / job.num_replicas * prompt
    prefill /= ranks * chip.flops * constants.prefill_efficiency
    return num_steps * (max(read, compute) + communication + constants.decode_overhead_s) + prefill


def _update_s(job: Job, plan: Ledger, chip: Chip, constants: Constants) -> float:
    """Optimizer traffic, gradients scattered in fp32 and weights gathered over the data-parallel ranks."""
    held, ranks = num_held(job, plan.stage), job.data * job.context
    traffic = 28 * held / ranks / (chip.memory_bandwidth * constants.decode_bandwidth)
    if ranks == 1:
        return traffic
    volume = (4 + job.weight_bytes) * held * (ranks - 1) / ranks
    return traffic + volume / _link(ranks * job.tensor, chip, constants)


def _sync_s(job: Job, chip: Chip, constants: Constants) -> float:
    if job.shares_weights:
        return 0.0
    received = job.shape.num_parameters * job.weight_bytes / job.generate_tensor
    kept = min(1.0, job.generate_tensor / (job.tensor * job.pipeline))  # what the rank has itself
    span = max(job.tensor * job.pipeline, job.generate_tensor)
    return received * (1 - kept) / _link(span, chip, constants)
