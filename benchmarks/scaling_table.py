"""The tables of docs/scale.md: python -m scaling_table prints them."""

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
    """Every machine size of one recipe, as Markdown."""
    return "\n".join([HEAD, *(row(recipe, n, chip) for n in NUM_GPUS for chip in CHIPS_SHOWN)])


def row(recipe: str, num_gpus: int, chip: str) -> str:
    """One machine: does the recipe's layout fit and how long does its step take; the best one and its cost."""
    run = cli.recipe_run(recipe)
    # The judge and the pairs file are no matter of layout.
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
