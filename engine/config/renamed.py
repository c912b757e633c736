"""Settings that earlier versions named otherwise. An old name on a command line is answered with the new one."""

# Old name, or old group with a dot at its end -> new names. A group keeps the rest of the name.
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


def new_names(old: str) -> list[str]:
    """The names that a setting may have now; none where it was never renamed."""
    if old in RENAMED:
        return list(RENAMED[old])
    group, dot, rest = old.partition(".")
    return [new + rest for new in RENAMED.get(group + dot, ())] if dot else []
