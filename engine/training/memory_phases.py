"""Memory in phases: what leaves the device when a stage of a step begins, and the ledger, predicted and measured.

The plan (`planner.memory.Ledger`) says what moves: nothing that need not. Stages are announced by their names,
as the watchdog hears them; `enter` moves what the next one has no use for, brings back what it needs, and
measures the one that ends.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from ralign.engine.config.run import Run
from ralign.engine.generator.generator import Generator
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger
from ralign.engine.planner.shapes import read_shape
from ralign.engine.planner.start import check_memory
from ralign.engine.policy.offload import TrainingState
from ralign.engine.runtime.cluster import Cluster

# Stage of a step -> phase of the ledger. In other stages (judge, checkpoint, ...) everything stays where it is.
PHASE_OF = {
    "generate": "generate",
    "evaluate": "generate",
    "plan": "learn",  # what training needs starts to come back
    "old_logprobs": "logprobs",
    "values": "values",
    "critic": "critic",
    "forward_backward": "learn",
    "optimizer": "update",
}
_NOT_HELD = (  # by what `held` counts: transient, or a judge's
    "reserve",
    "engine_workspace",
    "activations",
    "workspace",
    "own_weights",
    "optimizer_workspace",
    "bucket",
    "judge_weights",
    "judge_kv_cache",
)


def plan_memory(run: Run, cluster: Cluster, folder: Path) -> Ledger:
    """The ledger of this job on this machine, for the model in `folder`.

    Raises:
        UserError: it cannot fit.
    """
    on_gpu = cluster.device.type == "cuda"
    host = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    device = torch.cuda.get_device_properties(cluster.device).total_memory if on_gpu else host
    sizes: list = [None] * cluster.world_size
    dist.all_gather_object(sizes, (device, host))
    return check_memory(
        run,
        cluster.world_size,
        read_shape(folder),
        capacity_bytes=min(device for device, _ in sizes),
        on_gpu=on_gpu,
        host_bytes=min(host for _, host in sizes) if on_gpu else float("inf"),
    )


class MemoryPhases:
    """Moves and measures as a step goes on."""

    def __init__(self, plan: Ledger, generator: Generator, training: Sequence[TrainingState]):
        """`training`: of each trained model, as `TrainingState` they were before the generator was built."""
        self.plan, self._generator, self._training = plan, generator, training
        self._phase: str | None = None
        self._measured: dict[str, tuple[int, int]] = {}

    def enter(self, stage: str) -> None:
        """A stage begins."""
        phase = PHASE_OF.get(stage)
        if phase is None:
            return
        if self._phase is not None:
            self.measure(self._phase)
        self._phase = phase
        if phase == "generate":
            if self.plan.offload:
                for state in self._training:
                    state.leave()
            self._generator.bring_weights()
            self._generator.kv_cache.wake()
            return
        if self.plan.kv_sleep:
            self._generator.kv_cache.sleep()
        for state in self._training:
            state.come_back()
            if phase in ("update", "critic"):  # the stage of a critic has its optimizer's step in it
                state.wait()

    def before_training(self) -> None:
        """A stage of training is set up, or saved: optimizer state and gradients are on the device."""
        if self.plan.kv_sleep:
            self._generator.kv_cache.sleep()
        for state in self._training:
            state.come_back()
            state.wait()

    def metrics(self) -> dict[str, float]:
        """GiB of this rank by phase: `predicted` (with everything transient) and `used` (what the driver, or on
        CPU the kernel, counts for this process); `held_predicted` and `held`: weights, gradients, optimizer
        state and KV cache alone, by the ledger and by their storages."""
        self.measure(self._phase)
        values: dict[str, float] = {"host_pinned_predicted_gib": self.plan.host_bytes / GIB}
        for phase, (held, used) in self._measured.items():
            parts = self.plan.phases.get(phase, {})
            predicted = sum(size for name, size in parts.items() if name not in _NOT_HELD)
            values[f"{phase}_predicted_gib"] = sum(parts.values()) / GIB
            values[f"{phase}_used_gib"] = used / GIB
            values[f"{phase}_held_predicted_gib"] = predicted / GIB
            values[f"{phase}_held_gib"] = held / GIB
        self._measured.clear()
        return {f"memory/{name}": value for name, value in values.items()}

    def measure(self, phase: str | None) -> None:
        """At a phase's end: what torch has freed but kept is still counted, so this is near the phase's peak."""
        if phase is None:
            return
        device = self._generator.cluster.device
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            used = total - free
        else:
            used = psutil.Process().memory_info().rss
        held, before = self._held_bytes(), self._measured.get(phase, (0, 0))
        self._measured[phase] = (max(held, before[0]), max(used, before[1]))

    def _held_bytes(self) -> int:
        held = sum(
            state.weight_bytes() + state.optimizer_bytes() + state.gradient_bytes()
            for state in self._training
        )
        return held + self._generator.held_bytes()

    def close(self) -> None:
        """Before the engine ends: nothing trains any more, and vLLM frees a cache that is awake without complaint."""
        for state in self._training:
            state.discard()
        self._generator.kv_cache.wake()
