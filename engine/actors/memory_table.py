"""The memory ledger of an actor's training by role.

Actor (trainer and generator, one copy of the weights), critic, KL reference and GenRM share the hardware by phases.
"""

from ralign.engine.config.actor import ActorRun
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import Ledger

_ROLES = {
    "actor: weights": ("weights",),
    "actor: training": ("gradients", "optimizer", "optimizer_workspace", "activations", "workspace"),
    "generator": ("engine_weights", "engine_workspace", "kv_cache", "bucket"),
    "critic": ("critic_weights", "critic_gradients", "critic_optimizer"),
    "reference": (
        "own_weights",
    ),  # the actor's own weights, kept aside while the reference's are in their place
    "GenRM": ("judge_weights", "judge_kv_cache"),
    "reserve": ("reserve",),
}
_ON_HOST = {
    "actor: training": "optimizer",
    "critic": "critic_optimizer",
    "reference": "reference",
    "GenRM": "judge",
}


def memory_rows(run: ActorRun, plan: Ledger) -> list[list[str]]:
    """Heading and a row a role: GiB of one rank's device in each phase, and of its host memory.

    Every holder of the ledger is in exactly one row; a GenRM elsewhere (at an endpoint) has a row of dashes.
    """
    known = {holder for holders in _ROLES.values() for holder in holders}
    held = {holder for parts in plan.phases.values() for holder in parts}
    assert held <= known, f"holders without a role: {sorted(held - known)}"
    rows = [["GiB a rank", *plan.phases, "host"]]
    for role, holders in _ROLES.items():
        sizes = [sum(parts.get(name, 0) for name in holders) for parts in plan.phases.values()]
        on_host = plan.host.get(_ON_HOST.get(role, ""), 0)
        is_judge = role == "GenRM" and run.genrm.model is not None
        if is_judge or any(sizes) or on_host:
            name = f"{role} ({run.genrm.kind})" if is_judge else role
            rows.append([name, *map(_gib, sizes), _gib(on_host)])
    return rows


def _gib(size: int) -> str:
    return f"{size / GIB:.2f}" if size else "-"
