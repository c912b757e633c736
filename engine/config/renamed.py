"""Renamed settings. The error message for an old name on a command line gives the new name."""

# Old name, or old group with a trailing dot -> new names. The rest of a group's setting is unchanged.
RENAMED = {
    "judge.metarm": ("metarm.kind",),
    "judge.": ("metarm.", "genrm.", "annotator."),
    "actor.genrm": ("genrm.model",),
    "actor.judge": ("genrm.kind",),
    "actor.template": ("genrm.template",),
    "actor.num_tries": ("genrm.num_tries",),
    "actor.kv_cache_gib": ("genrm.kv_cache_gib",),
    "actor.gpu_memory_utilization": ("genrm.gpu_memory_utilization",),
    "actor.seats": ("actor.order",),
}

# Old name -> what its value True is now.
REPLACED = {
    "algo.both_orders": "algo.partner=order algo.couple=True",
}


def new_names(old: str) -> list[str]:
    """The possible new names of a setting; empty if it was never renamed."""
    if old in RENAMED:
        return list(RENAMED[old])
    group, dot, rest = old.partition(".")
    return [new + rest for new in RENAMED.get(group + dot, ())] if dot else []
