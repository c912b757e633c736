"""Search for layouts of a run that fit a machine: the best three, and the nearest to the requested one."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ralign.engine.planner.hardware import Chip, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger, ledger
from ralign.engine.planner.time import StepTime, bubble_share, step_time

NUM_BEST = 3
# Smallest relative gain for which twice the stages, twice the context ranks, or separate engine weights come before the
# simpler layout: the time model is not more accurate than that, and simple layouts have fewer failure modes.
LEAST_GAIN = 0.04


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A job with its memory ledger and its predicted time."""

    job: Job
    ledger: Ledger
    time: StepTime

    def settings(self) -> str:
        """The overrides of a recipe for this layout."""
        job = self.job
        parts = [
            f"parallel.tensor={job.tensor}",
            f"parallel.pipeline={job.pipeline}",
            f"parallel.context={job.context}",
            f"parallel.sequence={job.sequence}",
            f"parallel.recompute={job.recompute}",
            f"generator.tensor={0 if job.generate_tensor == job.tensor else job.generate_tensor}",
        ]
        return " ".join(parts)


def lay_out(job: Job, chip: Chip, constants: Constants) -> Layout:
    plan = ledger(job, chip.memory_bytes)
    return Layout(job=job, ledger=plan, time=step_time(job, plan, chip, constants))


def candidates(job: Job, constants: Constants) -> Iterator[Job]:
    """All layouts of the job's processes that divide the model and the batch."""
    world, shapes = job.world_size, [job.shape] + ([job.critic] if job.critic else [])
    tensors = [
        t
        for t in _divisors(world)
        if t <= constants.gpus_per_node
        and not any(shape.num_query_groups % t for shape in shapes)
        and not any(shape.num_attention_heads % t for shape in shapes)
        and not any(shape.ffn_hidden_size % t for shape in shapes)
    ]
    for tensor in tensors:
        for pipeline in (
            p for p in _divisors(world // tensor) if not any(shape.num_layers % p for shape in shapes)
        ):
            for context in (
                c for c in _divisors(world // (tensor * pipeline)) if c <= constants.gpus_per_node
            ):
                if job.num_prompts % (world // (tensor * pipeline * context)):
                    continue
                for generate in tensors:
                    if job.num_prompts % (world // generate):
                        continue
                    for recompute in (False, True):
                        yield replace(
                            job,
                            tensor=tensor,
                            pipeline=pipeline,
                            context=context,
                            sequence=tensor > 1,
                            recompute=recompute,
                            generate_tensor=generate,
                        )


def fitting(job: Job, chip: Chip, constants: Constants, host_bytes: float) -> list[Layout]:
    """Layouts that fit the device and `host_bytes` of pinned memory per GPU, sorted by `_cost`."""
    layouts = [lay_out(candidate, chip, constants) for candidate in candidates(job, constants)]
    fit = [x for x in layouts if not x.ledger.problems() and x.ledger.host_bytes <= host_bytes]
    return sorted(fit, key=_cost)


def _cost(layout: Layout) -> float:
    """Predicted seconds, with a penalty for complexity."""
    job = layout.job
    complexity = math.log2(job.pipeline) + math.log2(job.context) + (not job.shares_weights)
    return layout.time.total_s * (1 + LEAST_GAIN) ** complexity


def best(layouts: list[Layout]) -> list[Layout]:
    """The first three with different training layouts, each with its best generation layout."""
    chosen: dict[tuple[int, int, int], Layout] = {}
    for layout in layouts:
        job = layout.job
        chosen.setdefault((job.tensor, job.pipeline, job.context), layout)
    return list(chosen.values())[:NUM_BEST]


def nearest(job: Job, layouts: list[Layout]) -> Layout | None:
    """The fitting layout with the fewest changed settings; the best of several."""
    names = ("tensor", "pipeline", "context", "recompute", "generate_tensor")

    def distance(layout: Layout) -> tuple[int, float]:
        changed = sum(getattr(layout.job, name) != getattr(job, name) for name in names)
        return changed, _cost(layout)

    return min(layouts, key=distance, default=None)


def smallest_world(job: Job, chip: Chip, constants: Constants, host_bytes: float) -> int | None:
    """The smallest number of GPUs, a power of two, on which some layout fits; None if there is none."""
    world = 1
    while world <= 4096:
        if job.num_prompts % world == 0 or world <= constants.gpus_per_node:
            if fitting(replace(job, world_size=world), chip, constants, host_bytes):
                return world
        world *= 2
    return None


def advice(layout: Layout, fastest: Layout | None, constants: Constants) -> list[str]:
    """Advice on wasteful settings of a layout that fits, each in one line with numbers."""
    job, plan, found = layout.job, layout.ledger, []
    if job.tensor > constants.gpus_per_node:
        found.append(
            f"parallel.tensor={job.tensor} spans nodes of {constants.gpus_per_node} GPUs:"
            " every layer uses the network"
        )
    if job.tensor > 1 and not job.sequence:
        found.append(
            "parallel.sequence=True would split norms and residuals over the tensor ranks at no cost"
        )
    if (
        plan.offload
        and job.offload == "always"
        and not ledger(replace(job, offload="auto"), plan.capacity_bytes).offload
    ):
        found.append("memory.offload=always is unnecessary: the optimizer state fits beside the generator")
    bubble = bubble_share(job, layout.time.tokens)
    if bubble > 0.1:
        found.append(
            f"pipeline bubble: {bubble:.0%} on top of learning, from too few micro-batches per update"
        )
    needed = job.max_prompt_tokens + job.max_new_tokens
    if job.token_budget > 8 * needed:
        found.append(
            f"token_budget={job.token_budget} holds {job.token_budget // needed} samples of {needed} tokens:"
            " activations grow with the budget"
        )
    if job.recompute:
        without = ledger(replace(job, recompute=False), plan.capacity_bytes)
        if not without.problems():
            found.append("parallel.recompute=True costs a third more work; activations fit without it")
    if fastest is not None and layout.time.total_s > 1.2 * fastest.time.total_s:
        found.append(
            f"{fastest.settings()} is predicted {layout.time.total_s / fastest.time.total_s:.1f} times as fast"
        )
    return found


def refusal(
    layout: Layout, problems: Sequence[str], near: Layout | None, chip: Chip, *, on_gpu: bool = True
) -> str:
    """One line: what does not fit, with numbers, and the nearest layout that fits."""
    line = f"does not fit {layout.job.world_size} x {chip.name} ({chip.memory_bytes / GIB:.0f} GiB): "
    line += "; ".join(problems)
    judge = layout.job.judge
    if on_gpu and judge is not None and fits_beside_a_sleeping_judge(layout, chip):  # sleep needs a GPU
        line += f"; with {judge.setting}.server.sleep_level=1 it fits"
    if near is None:
        return f"{line}; no layout of {layout.job.world_size} such GPUs fits"
    return f"{line}; nearest layout that fits: {near.settings()}"


def fits_beside_a_sleeping_judge(layout: Layout, chip: Chip) -> bool:
    """Whether the layout fits if the judge's server, now always awake, sleeps while the policy trains."""
    judge = layout.job.judge
    if judge is None or not judge.is_server or judge.sleep_level:
        return False
    job = replace(layout.job, judge=replace(judge, sleep_level=1))
    return not ledger(job, chip.memory_bytes).problems()


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
