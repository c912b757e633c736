"""The device memory of training: what leaves it while the engine generates, and the ledger, predicted and measured.

The plan (`planner.memory.Ledger`) decides whether anything moves. The moves themselves are lines of a step
(`Trainer.step`): offload, onload, wait; the generator's wake and sleep move the KV cache.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
import torch.distributed as dist
from ralign.engine.config.run import Run
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger
from ralign.engine.planner.shapes import read_shape
from ralign.engine.planner.start import check_memory
from ralign.engine.policy.megatron_model import MegatronModel
from ralign.engine.policy.offload import OffloadedState
from ralign.engine.runtime.cluster import Cluster

# Stage of a step -> phase of the ledger.
PHASE_OF = {
    "start": "start",
    "generate": "generate",
    "evaluate": "generate",
    "plan": "learn",
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


class Memory:
    """Optimizer state and gradients of the trained models, and the measurement of all that a rank holds."""

    def __init__(self, plan: Ledger, models: Sequence[MegatronModel], engine_bytes: Callable[[], int]):
        """`models`: on the device now. `engine_bytes`: what the engine holds of it."""
        self.plan, self._engine_bytes = plan, engine_bytes
        self._states = [OffloadedState(model) for model in models]
        self._device = models[0].cluster.device
        self._measured: dict[str, tuple[int, int]] = {}

    def offload(self) -> None:
        """Optimizer state to host memory, gradients freed, where the plan asks for it."""
        if self.plan.offload:
            for state in self._states:
                state.offload()

    def onload(self) -> None:
        """Start to bring back what was offloaded; gradients have their memory at once."""
        for state in self._states:
            state.onload()

    def wait(self) -> None:
        """Make the device wait for what `onload` brings; before an optimizer step."""
        for state in self._states:
            state.wait()

    def metrics(self) -> dict[str, float]:
        """GiB of this rank by phase: `predicted` (with everything transient) and `used` (what the driver, or on
        CPU the kernel, counts for this process); `held_predicted` and `held`: weights, gradients, optimizer
        state and KV cache alone, by the ledger and by their storages."""
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

    def measure(self, stage: str) -> None:
        """Measure a stage of a step that ends; stages of no phase of the ledger are left out.

        On CUDA memory that torch has freed and kept counts, too, so this is near the phase's peak.
        """
        phase = PHASE_OF.get(stage)
        if phase is None:
            return
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            used = total - free
        else:
            used = psutil.Process().memory_info().rss
        largest_held, largest_used = self._measured.get(phase, (0, 0))
        self._measured[phase] = (max(self._held_bytes(), largest_held), max(used, largest_used))

    def _held_bytes(self) -> int:
        return self._engine_bytes() + sum(
            state.weight_bytes() + state.optimizer_bytes() + state.gradient_bytes() for state in self._states
        )

    def close(self) -> None:
        """Free everything that training holds: no stage follows."""
        for state in self._states:
            state.discard()
