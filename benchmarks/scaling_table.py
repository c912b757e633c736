"""Prints the tables of docs/scale.md: python benchmarks/scaling_table.py"""

from dataclasses import replace

from ralign.engine.planner import cli
from ralign.engine.planner.hardware import CHIPS, Constants
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.terms import short

RECIPES = ("r_align_8b", "r_align_14b", "r_align_32b")
CHIPS_SHOWN = ("h100", "h200")
NUM_GPUS = (8, 16, 32, 64, 128, 256, 512)

HEAD = (
    "| GPUs | chip | the recipe's own layout | best layout that fits | GiB a GPU | host GiB | s a step"
    " | B tokens a day |\n|---|---|---|---|---|---|---|---|"
)


def table(recipe: str) -> str:
    """All machine sizes of one recipe, as Markdown."""
    return "\n".join([HEAD, *(row(recipe, n, chip) for n in NUM_GPUS for chip in CHIPS_SHOWN)])


def row(recipe: str, num_gpus: int, chip: str) -> str:
    """One machine: step time of the recipe's own layout if it fits, and the best layout with its cost."""
    run = cli.recipe_run(recipe)
    # The layout does not depend on the MetaRM.
    run = replace(run, metarm=replace(run.metarm, kind="none"), algo=replace(run.algo, reward="label"))
    report = cli.plan(run, num_gpus, CHIPS[chip], Constants())
    own = f"{report['layout']['time_s']['total']:.0f} s" if not report["problems"] else "does not fit"
    start = f"| {num_gpus} | {chip} | {own} |"
    if not report["best"]:
        return f"{start} none | | | | |"
    best = report["best"][0]
    gib = max(best["total_bytes"].values()) / GIB
    return (
        f"{start} {short(best)} | {gib:.0f} | {sum(best['host_bytes'].values()) / GIB:.0f}"
        f" | {best['time_s']['total']:.0f} | {best['tokens_a_day'] / 1e9:.2f} |"
    )


if __name__ == "__main__":
    for name in RECIPES:
        print(f"### {name}\n\n{table(name)}\n")
