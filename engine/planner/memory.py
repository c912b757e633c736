"""The memory ledger: memory of a rank's device by holder, in each phase of a step.

Phases: `start` (the engine is built beside the models; there is no optimizer yet); `generate`; `sync` (gather path
only: the engine receives the new weights); `logprobs` (old and reference logprobs, if a run needs them); `learn`
(forward and backward); `update` (the optimizer step). PPO's critic is a second model with the same formulas (its head
is one row) and two more phases: `values`, and `critic` (forward, backward and step). A judge on the same devices has
memory in all phases, or, if it sleeps, only at the start and during generation (judges.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ralign.engine.planner.formulas import (
    checkpoint_copy_bytes,
    engine_workspace_bytes,
    held_bytes,
    num_held,
    pass_bytes,
    step_bytes,
    workspace_bytes,
)
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB

PHASES = ("start", "generate", "sync", "logprobs", "values", "critic", "learn", "update")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """One rank's memory by phase.

    Attributes:
        phases: phase -> holder -> bytes on the device.
        host: holder -> bytes of the rank's pinned host memory.
        offload, kv_sleep: the decisions, also for settings of auto.
        capacity_bytes: memory of the device.
        stage: the rank's pipeline stage (the fullest one).
        kv_bytes: size of the KV cache during generation.
        needs: problems beside the totals, in words.
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
        """The reasons why this does not fit the device, in words with numbers; empty if it fits."""
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
    """The ledger of one stage. With auto, only what does not fit otherwise is moved."""
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
    """A KV cache for decoding all sequences of a step at once, at three quarters of the full length."""
    num_sequences = min(job.max_num_seqs, -(-job.num_prompts * job.num_samples // job.num_replicas))
    return max(job.sequence_bytes, num_sequences * job.sequence_bytes * 3 // 4)


def _phases(
    job: Job, stage: int, held: int, capacity: int, offload: bool, kv_sleep: bool, on_gpu: bool
) -> Ledger:
    weights, gradients, optimizer = held_bytes(job, held)
    base, trained = {"weights": weights}, {"gradients": gradients, "optimizer": optimizer}
    critic = job.of_critic() if job.critic else None
    if critic:
        names = ("critic_weights", "critic_gradients", "critic_optimizer")
        of_critic = dict(zip(names, held_bytes(critic, num_held(critic, stage)), strict=True))
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
    # The models are built with gradients. With offload, gradients are freed before the engine is built.
    phases["start"] = {name: x for name, x in phases["generate"].items() if not name.endswith("optimizer")}
    if job.num_updates > 1 or job.has_reference:
        workspace = workspace_bytes(job, stage, backward=False, on_gpu=on_gpu)
        phases["logprobs"] = {**base, **trained, **cache, "workspace": workspace}
        if job.has_reference:
            phases["logprobs"]["own_weights"] = weights  # the policy's, beside the reference's
    everything = {**base, **trained, **cache}
    phases["learn"] = everything | pass_bytes(job, stage, on_gpu)
    phases["update"] = everything | {"optimizer_workspace": step_bytes(job, held, on_gpu)}
    if critic:
        forward = workspace_bytes(critic, stage, backward=False, on_gpu=on_gpu)
        phases["values"] = everything | {"workspace": forward}
        learning = pass_bytes(critic, stage, on_gpu)
        step = {"optimizer_workspace": step_bytes(critic, num_held(critic, stage), on_gpu)}
        phases["critic"] = everything | max(learning, step, key=lambda parts: sum(parts.values()))
    if not job.shares_weights:
        phases["sync"] = {**base, **trained, **cache, "bucket": job.bucket_bytes}
    models = [job] + ([critic] if critic else [])
    # A checkpoint is written from a copy, in the background.
    host = {"checkpoint": sum(checkpoint_copy_bytes(model, stage, on_gpu) for model in models)}
    if offload:
        host |= {name: size for name, size in trained.items() if name.endswith("optimizer")}
    if job.has_reference:
        host["reference"] = weights
    if sleeps and job.judge is not None and job.judge.sleep_level == 1:
        host["judge"] = job.judge.weight_bytes
    needs = job.judge.needs(capacity, on_gpu=on_gpu) if job.judge else []
    if kv < job.sequence_bytes:
        needs.append(
            f"generate has {kv / GIB:.2f} GiB for the KV cache, one sequence of "
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
