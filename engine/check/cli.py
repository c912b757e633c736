"""ralign-check: check whether a run can start on this machine, before it waits in a queue.

ralign-check                                                           the machine only
ralign-check recipes/r_align_32b.py data.train=pairs.jsonl             also the run: model, data, judge, plan, disk
ralign-check r_align_32b --gpus 16 --gpu h200                          on a login node, for GPUs elsewhere

Each check prints one line: OK, WARN or FAIL, the finding, and the next step. An endpoint of a judge gets one short
request. Exit status 1 with a FAIL, 0 without one, 2 for a mistake in the command.
"""

import argparse
import sys

from ralign.engine.check.report import Finding, as_json, as_text, worst
from ralign.engine.config.command_line import SMOKE_FLAG
from ralign.engine.config.run import Run
from ralign.engine.planner.hardware import CHIPS, Chip, chip_of
from ralign.engine.runtime.argparse_utils import Parser, positive
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError

_LEAST_MIB = 1024  # torch is imported, which needs about 700


def main() -> None:
    """The console script."""
    run_main(_main, least_mib=_LEAST_MIB)


def _main(argv: list[str]) -> None:
    options, settings = _parser().parse_known_args(argv)
    run = _run(options.recipe, settings)
    chip = chip_of(options.gpu) if options.gpu else None
    from ralign.engine.check.machine import read_machine

    found = findings(run, options.recipe or "", read_machine(), num_gpus=options.gpus, chip=chip)
    print(as_json(found, run.name if run else None) if options.json else as_text(found))
    if worst(found) == "FAIL":
        sys.exit(1)


def _run(recipe: str | None, settings: list[str]) -> Run | None:
    """The recipe's settings with the overrides of the command line; None without a recipe."""
    if SMOKE_FLAG in settings:
        raise UserError(
            f"{SMOKE_FLAG} makes its own model, data and judge: ralign-check without a recipe checks the machine for it"
        )
    if recipe is None or "=" in recipe or recipe.startswith("-"):
        given = [word for word in (recipe, *settings) if word]
        if given:
            raise UserError(f"cannot read {given[0]!r}: a recipe comes first, then its settings")
        return None
    from ralign.engine.planner.cli import recipe_with

    return recipe_with(recipe, settings)


def findings(
    run: Run | None, recipe: str, machine, *, num_gpus: int | None = None, chip: Chip | None = None
) -> list[Finding]:
    """All checks.

    Args:
        run: the run to check; None checks only the machine.
        recipe: the recipe as the user gave it, for the commands in next steps.
        machine: a `Machine`.
        num_gpus: of the job over all nodes (on a CPU, processes); None: see `default_num_gpus`.
        chip: the kind of GPU of the job; None: this machine's.
    """
    from ralign.engine.check import folders, hardware, packages, plan, slurm
    from ralign.engine.check import judge as judges

    num_visible = len(machine.gpus)
    # A CUDA build of vLLM has no engine for a CPU.
    is_cuda_build = machine.torch is not None and machine.torch.cuda is not None
    fills_gpus = run is not None and plan.needs_gpus(run)
    needs = fills_gpus or (run is not None and is_cuda_build)
    need = "no" if not needs else "here" if chip is None or num_visible else "elsewhere"
    fills = run.generator.gpu_memory_utilization if run is not None and fills_gpus else None
    chip = chip or plan.chip_of_gpus(machine.gpus)
    num_gpus = num_gpus or plan.default_num_gpus(run, machine)
    found = [
        hardware.check_torch(machine),
        hardware.check_driver(machine.driver, machine.torch, need),
        hardware.check_gpus(machine, need, fills),
        hardware.check_processes(machine.env, num_visible, num_gpus, machine.num_cores),
        hardware.check_nccl(machine.torch, machine.env, num_visible),
        hardware.check_shared_memory(machine.shared_memory),
        hardware.check_nvlink(num_visible, machine.unlinked, run.parallel.tensor if run else 2),
        packages.check_packages(machine.packages, packages.lock_for(machine)),
        packages.check_extension(machine),
        slurm.check_slurm(machine.programs, machine.env, num_visible),
        plan.check_disk(run, machine),
    ]
    if run is None:
        return found
    assert num_gpus is not None  # a run has a default
    of_run = [
        folders.check_model(run, machine.torch),
        folders.check_critic(run, machine.torch),
        folders.check_data(run),
        judges.check_judge(run, machine.env),
        plan.check_plan(run, recipe, machine, num_gpus, chip),
    ]
    return found + [finding for finding in of_run if finding is not None]


def _parser() -> Parser:
    parser = Parser(
        prog="ralign-check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings of the recipe follow it as field.sub=value, for example parallel.tensor=4.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipe", nargs="?", metavar="RECIPE", help="a recipe's file, or its name in recipes/")
    add(
        "--gpus", type=positive, metavar="N", help="GPUs of the job, over all nodes (default: this machine's)"
    )
    add("--gpu", metavar="KIND", help=f"{', '.join(CHIPS)}, or memory in GB (default: this machine's)")
    add("--json", action="store_true", help="print JSON instead of lines")
    return parser


if __name__ == "__main__":
    main()
