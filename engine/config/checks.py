"""Checks of settings that several files share: numbers, and sizes that a layout must divide."""

from collections.abc import Mapping
from pathlib import Path

from ralign.engine.config.run import Run
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object
from ralign.engine.runtime.problems import Problems

LAYOUT_SIZES = {  # our name -> in a Hugging Face config.json: sizes of a model that a layout must divide or fit
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_query_groups": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "max_position_embeddings": "max_position_embeddings",
}


class Checks(Problems):
    """Mistakes of settings; __ in a name stands for a dot."""

    def at_least(self, least: float, **settings: float) -> bool:
        return all(
            [
                self.require(value >= least, f"{dotted(name)} must be at least {least}, got {value}")
                for name, value in settings.items()
            ]
        )

    def positive(self, **settings: float) -> None:
        for name, value in settings.items():
            self.require(value > 0, f"{dotted(name)} must be positive, got {value}")

    def share(self, **settings: float) -> None:
        for name, value in settings.items():
            self.require(0 <= value <= 1, f"{dotted(name)} must be from 0 to 1, got {value}")

    def divides(self, part: int, part_name: str, whole: int, whole_name: str) -> bool:
        """False without a message for a `part` below 1, which has its own check."""
        return part >= 1 and self.require(
            whole % part == 0, f"{whole_name} = {whole} is not divisible by {part_name} = {part}"
        )


def dotted(name: str) -> str:
    return name.replace("__", ".")


def folder_sizes(checks: Checks, setting: str, folder: str) -> dict[str, int] | None:
    """The sizes in a folder's config.json; None if they cannot be read."""
    try:
        hf = read_json_object(Path(folder) / "config.json")
    except UserError as error:
        checks.add(f"{setting}={folder}: {error}")
        return None
    missing = [name for name in LAYOUT_SIZES.values() if type(hf.get(name)) is not int or hf[name] < 1]
    where = f"{setting}={folder}: config.json has no"
    if not checks.require(not missing, f"{where} {', '.join(missing)}"):
        return None
    return {ours: hf[theirs] for ours, theirs in LAYOUT_SIZES.items()}


def check_trainer_cut(checks: Checks, run: Run, sizes: Mapping[str, int], whose: str) -> None:
    """Requires that the trainer's layout divides these sizes."""
    parallel = run.parallel
    for name in ("num_attention_heads", "num_query_groups", "ffn_hidden_size"):
        checks.divides(parallel.tensor, "parallel.tensor", sizes[name], f"{whose}'s {name}")
    checks.divides(parallel.pipeline, "parallel.pipeline", sizes["num_layers"], f"{whose}'s num_layers")
