"""Predicted time of a step: a sum of terms, each an amount of work over a peak rate times an efficiency.

Amounts are per GPU. M: parameters that multiply each token (all but the input embedding, a lookup). l: tokens of an
average sample. m: micro-batches per update. p: pipeline stages.

    learn       6 M FLOPs per token (8 M with recomputation), attention's 3 (4) times 2 l N D per layer; tensor- and
                context-parallel collectives; the pipeline bubble: (p - 1) / m of the sum
    logprobs    2 M per token, once for old logprobs (several updates), once for the reference; the rest as in learn
    values, critic   PPO: the critic's forward pass, and its learn and update
    generate    decode steps x (reading the weights, or FLOPs if slower; the KV cache; all-reduces; overhead), and the
                FLOPs of the prompts, each prompt once
    update      28 bytes of optimizer traffic per parameter of this rank's share; exchange of gradients and weights
    sync        gather path: bytes that a rank of an engine receives, once per step; shared weights: nothing
    offload     optimizer state over the host link; the transfer back overlaps with `learn`

The model is accurate enough to order layouts and to find the dominant terms. docs/scale.md compares it with published
runs and lists its omissions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ralign.engine.planner.formulas import num_held
from ralign.engine.planner.hardware import Chip, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.memory import Ledger
from ralign.engine.planner.shapes import Shape

SECONDS_A_DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class Term:
    """Work of one GPU in one phase of a step, and its time.

    Attributes:
        phase, name: phase of the step, and name of the work.
        amount: of work in a step, in `unit`s (FLOP, B for bytes, or counted things).
        unit_s: seconds per unit.
        peak, efficiency: `unit_s` is 1 / (peak x efficiency); None for a latency.
    """

    phase: str
    name: str
    amount: float
    unit: str
    unit_s: float
    peak: float | None = None
    efficiency: float | None = None

    @property
    def seconds(self) -> float:
        return self.amount * self.unit_s

    @classmethod
    def at_rate(
        cls, phase: str, name: str, amount: float, unit: str, peak: float, efficiency: float
    ) -> "Term":
        """Work at a share of a peak rate (units/s)."""
        unit_s = 1 / (peak * efficiency)
        return cls(
            phase=phase, name=name, amount=amount, unit=unit, unit_s=unit_s, peak=peak, efficiency=efficiency
        )

    @classmethod
    def of_count(cls, phase: str, name: str, amount: float, unit: str, unit_s: float) -> "Term":
        """Counted things with a fixed time each."""
        return cls(phase=phase, name=name, amount=amount, unit=unit, unit_s=unit_s)


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The terms of a step; `tokens` are prompt and response tokens of all its samples."""

    terms: Sequence[Term]
    tokens: float

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of each phase."""
        found: dict[str, float] = {}
        for term in self.terms:
            found[term.phase] = found.get(term.phase, 0.0) + term.seconds
        return found

    @property
    def total_s(self) -> float:
        return sum(term.seconds for term in self.terms)

    @property
    def tokens_a_day(self) -> float:
        return self.tokens / self.total_s * SECONDS_A_DAY


@dataclass(frozen=True, kw_only=True)
class _Machine:
    """A chip and the efficiencies of its peaks."""

    chip: Chip
    constants: Constants

    def flops(self, phase: str, name: str, amount: float, efficiency: float) -> Term:
        return Term.at_rate(phase, name, amount, "FLOP", self.chip.flops, efficiency)

    def memory(self, phase: str, name: str, amount: float) -> Term:
        return Term.at_rate(
            phase, name, amount, "B", self.chip.memory_bandwidth, self.constants.decode_bandwidth
        )

    def link(self, phase: str, name: str, amount: float, ranks: int) -> Term:
        """A collective over `ranks` neighbouring ranks."""
        inside = ranks <= self.constants.gpus_per_node
        peak = self.chip.node_link if inside else self.chip.network_link
        return Term.at_rate(phase, name, amount, "B", peak, self.constants.link_efficiency)

    def host(self, phase: str, name: str, amount: float) -> Term:
        return Term.at_rate(phase, name, amount, "B", self.chip.host_link, self.constants.link_efficiency)


def step_time(job: Job, plan: Ledger, chip: Chip, constants: Constants) -> StepTime:
    machine = _Machine(chip=chip, constants=constants)
    prompt = constants.mean_prompt_tokens or job.max_prompt_tokens * constants.mean_prompt
    response = constants.mean_new_tokens or job.max_new_tokens * constants.mean_response
    length = prompt + response
    tokens = job.num_prompts * job.num_samples * length
    terms = _generate(job, plan, machine, prompt, response)
    terms.append(Term.of_count("judge", "judging beyond generating", constants.judge_s, "s", 1.0))
    num_forwards = int(job.num_updates > 1) + int(job.has_reference)
    if num_forwards:
        terms += _forwards("logprobs", job, machine, tokens, length, times=num_forwards)
    if job.critic:
        critic = job.of_critic()
        terms += _forwards("values", critic, machine, tokens, length, times=1)
        terms += _learn("critic", critic, machine, tokens, length)
        terms += _update("critic", critic, plan, machine)
    learn = _learn("learn", job, machine, tokens, length)
    terms += learn
    terms += _update("update", job, plan, machine)
    terms += _sync(job, machine)
    if plan.offload:
        moved = sum(size for name, size in plan.host.items() if name.endswith("optimizer"))
        away = machine.host("offload", "optimizer state to the host", moved)
        hidden = sum(term.seconds for term in learn) / away.unit_s
        terms += [away, machine.host("offload", "and back, beyond learning", max(0.0, moved - hidden))]
    return StepTime(terms=tuple(terms), tokens=tokens)


def num_micro_batches(job: Job, tokens: float) -> float:
    """Micro-batches of one update on one data-parallel rank, of `tokens` a step."""
    return max(tokens / (job.num_updates * job.data * job.token_budget), 1.0)


def bubble_share(job: Job, tokens: float) -> float:
    """Pipeline bubble as a share of the work of a pass: each update fills and drains the pipeline once."""
    return (job.pipeline - 1) / num_micro_batches(job, tokens)


def _learn(phase: str, job: Job, machine: _Machine, tokens: float, length: float) -> list[Term]:
    """Forward and backward passes over all tokens of a step; a backward pass costs two forward passes."""
    again = int(job.recompute)
    return _passes(
        phase, job, machine, tokens, length, forwards=3 + again, collectives=4 + 2 * again, gathers=2 + again
    )


def _forwards(
    phase: str, job: Job, machine: _Machine, tokens: float, length: float, *, times: int
) -> list[Term]:
    """Forward passes over all tokens of a step."""
    return _passes(phase, job, machine, tokens, length, forwards=times, collectives=2 * times, gathers=times)


def _passes(
    phase: str,
    job: Job,
    machine: _Machine,
    tokens: float,
    length: float,
    *,
    forwards: int,
    collectives: int,
    gathers: int,
) -> list[Term]:
    """Passes with the FLOPs of this many forward passes.

    Args:
        collectives: all-reduces of hidden states per layer (or gather and scatter), over the tensor ranks.
        gathers: collectives of keys and values per layer, over the context ranks.
    """
    shape, constants = job.shape, machine.constants
    own_tokens = forwards * tokens / job.world_size
    attention = (
        2 * length * shape.num_layers * shape.num_attention_heads * shape.head_dim
    )  # causal: half of l²
    terms = [
        machine.flops(
            phase, "matrices", own_tokens * 2 * num_matrix_parameters(shape), constants.train_efficiency
        ),
        machine.flops(phase, "attention", own_tokens * attention, constants.train_efficiency),
    ]
    layers = shape.num_layers / job.pipeline
    if job.tensor > 1:
        volume = collectives * 2 * (job.tensor - 1) / job.tensor * layers * shape.hidden_size
        volume *= tokens / (job.data * job.context) * job.weight_bytes * constants.exposed_communication
        terms.append(machine.link(phase, "tensor-parallel collectives, exposed share", volume, job.tensor))
    if job.context > 1:
        groups = max(shape.num_query_groups // job.tensor, 1)
        volume = gathers * 2 * groups * shape.head_dim * layers * (job.context - 1) / job.context
        volume *= tokens / job.data * job.weight_bytes
        terms.append(machine.link(phase, "keys and values gathered", volume, job.tensor * job.context))
    if job.pipeline > 1:
        work_s = sum(term.seconds for term in terms)
        num_worked = job.num_updates * num_micro_batches(job, tokens)
        num_idle = job.num_updates * (job.pipeline - 1)
        terms.append(Term.of_count(phase, "pipeline bubble", num_idle, "micro-batches", work_s / num_worked))
    return terms


def num_matrix_parameters(shape: Shape) -> int:
    """Parameters that multiply every token: all but an input embedding that is not also the LM head."""
    return shape.num_parameters - (0 if shape.tie_embeddings else shape.padded_vocab_size * shape.hidden_size)


def _generate(job: Job, plan: Ledger, machine: _Machine, prompt: float, response: float) -> list[Term]:
    shape, ranks, constants = job.shape, job.generate_tensor, machine.constants
    num_samples = job.num_prompts * job.num_samples / job.num_replicas
    average = prompt + response / 2
    at_once = max(min(job.max_num_seqs, num_samples, plan.kv_bytes / (average * job.kv_token_bytes)), 1.0)
    # The engine decodes until the longest answer ends, even if few sequences remain.
    num_steps = max(float(job.max_new_tokens), num_samples * response / at_once)
    busy = num_samples * response / num_steps  # sequences of an average step
    parameters = num_matrix_parameters(shape) / ranks
    read = machine.memory("generate", "weights read", num_steps * parameters * job.weight_bytes)
    flops = num_steps * 2 * parameters * busy
    multiplied = machine.flops("generate", "matrices", flops, constants.prefill_efficiency)
    terms = [
        max(read, multiplied, key=lambda term: term.seconds),
        machine.memory(
            "generate",
            f"KV cache of {busy:,.0f} sequences x {average:,.0f} tokens read",
            num_steps * busy * average * job.kv_token_bytes,
        ),
    ]
    if ranks > 1:
        num_reduced = num_steps * 2 * shape.num_layers
        volume = num_reduced * 2 * (ranks - 1) / ranks * busy * shape.hidden_size * job.weight_bytes
        latency_s = constants.collective_latency_s
        terms += [
            machine.link("generate", "all-reduces, volume", volume, ranks),
            Term.of_count("generate", "all-reduces, latency", num_reduced, "calls", latency_s),
        ]
    prompts = 2 * parameters * job.num_prompts / job.num_replicas * prompt
    return terms + [
        Term.of_count("generate", "decode steps, overhead", num_steps, "steps", constants.decode_overhead_s),
        machine.flops("generate", "prompts", prompts, constants.prefill_efficiency),
    ]


def _update(phase: str, job: Job, plan: Ledger, machine: _Machine) -> list[Term]:
    """Optimizer traffic, and over the data-parallel ranks the fp32 gradients scattered and the weights gathered."""
    held, ranks = num_held(job, plan.stage), job.data * job.context
    terms = [machine.memory(phase, "optimizer state", job.num_updates * 28 * held / ranks)]
    if ranks > 1:
        volume = job.num_updates * (4 + job.weight_bytes) * held * (ranks - 1) / ranks
        terms.append(machine.link(phase, "gradients and weights exchanged", volume, ranks * job.tensor))
    return terms


def _sync(job: Job, machine: _Machine) -> list[Term]:
    """The engine receives the weights once per step, before generation, independent of the number of updates."""
    received = job.shape.num_parameters * job.weight_bytes / job.generate_tensor
    kept = min(1.0, job.generate_tensor / (job.tensor * job.pipeline))  # share that the rank holds itself
    if job.shares_weights:
        kept = 1.0
    span = max(job.tensor * job.pipeline, job.generate_tensor)
    return [machine.link("sync", "weights received", received * (1 - kept), span)]
