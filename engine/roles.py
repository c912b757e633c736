"""Who is resident when: the memory ledger of an actor's training, told by roles.

Actor (trainer and generator, one copy of the weights), critic, KL reference and GenRM share the hardware by phases. The
ledger counts them all but for a GenRM on a server of its own: that has a row here, with what it takes of the same
devices, for which `memory.reserve_gib` leaves room.
"""

from ralign.engine.actor_config import ActorRun
from ralign.engine.planner.genrm import folder_bytes
from ralign.engine.planner.memory import GIB, Ledger

_ROLES = {
    "actor: weights": ("weights",),
    "actor: training": ("gradients", "optimizer", "optimizer_workspace", "activations", "workspace"),
    "generator": ("engine_weights", "engine_workspace", "kv_cache", "bucket"),
    "critic": ("critic_weights", "critic_gradients", "critic_optimizer"),
    "reference": (
        "own_weights",
    ),  # the actor's own weights, kept aside while the reference's are in their place
    "GenRM (process)": ("genrm_weights", "genrm_kv_cache"),
    "reserve": ("reserve",),
}


def residents(run: ActorRun, plan: Ledger, *, on_gpu: bool) -> list[list[str]]:
    """Heading and a row a role: GiB of one rank's device in each phase, and of its host memory.

    Every holder of the ledger is in exactly one row; a GenRM elsewhere (at an endpoint) has a row of dashes.
    """
    known = {holder for holders in _ROLES.values() for holder in holders}
    held = {holder for parts in plan.phases.values() for holder in parts}
    assert held <= known, f"holders without a role: {sorted(held - known)}"
    host = {"actor: training": "optimizer", "critic": "critic_optimizer", "reference": "reference"}
    rows = [["GiB a rank", *plan.phases, "host"]]
    for role, holders in _ROLES.items():
        sizes = [sum(parts.get(name, 0) for name in holders) for parts in plan.phases.values()]
        on_host = plan.host.get(host.get(role, ""), 0)
        if any(sizes) or on_host:
            rows.append([role, *map(_gib, sizes), _gib(on_host)])
    if run.actor.genrm is not None and run.actor.judge != "process":
        size = _gib(_server_bytes(run, plan.capacity_bytes, on_gpu))
        rows.append([f"GenRM ({run.actor.judge})", *[size] * len(plan.phases), "-"])
    return rows


def _server_bytes(run: ActorRun, capacity_bytes: int, on_gpu: bool) -> int:
    """What a GenRM's server takes of a rank's device, awake all the time; 0 if it is elsewhere."""
    server = run.judge.server
    if run.actor.judge == "endpoint" or server.devices is not None:
        return 0
    if on_gpu:
        return int(server.gpu_memory_utilization * capacity_bytes)
    return folder_bytes(run.actor.genrm) + int(server.kv_cache_gib * GIB)


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"
