"""ralign-submit: a recipe as a SLURM job that saves before it is preempted, queues itself again, and goes on.

ralign-submit recipes/r_align_32b.py --nodes 4 --gpus 8 --time 24:00:00 data.train=pairs.jsonl
ralign-submit recipes/r_align_mini.py --nodes 2 --gpus 0 --seeds 0-3 --dry-run
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from ralign.engine.command_line import run_main
from ralign.engine.errors import UserError
from ralign.engine.options import Parser, positive

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}")  # minutes, or [days-]hours:minutes:seconds
_SEEDS = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*(%\d+)?")  # sbatch's --array


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    args = _parser().parse_intermixed_args(argv)
    command, variables = sbatch_command(args)
    spelled = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    print(f"{spelled} {shlex.join(command)}", flush=True)
    if args.dry_run:
        print(f"\n# {args.script}\n{args.script.read_text(encoding='utf-8')}", end="")
        return
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not installed here: run this on a login node of the cluster (or with --dry-run)"
        )
    args.logs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()}")
    print(done.stdout.strip())
    job = done.stdout.split()[-1]
    print(f"logs: {args.logs}/{job}*, stop and save: scancel --signal=USR1 --batch {job}")


def sbatch_command(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The sbatch command line and the variables that go with it.

    Raises:
        UserError: a file is missing, or a value has no meaning for SLURM.
    """
    recipe = _recipe(args.recipe)
    args.script = args.script or recipe.parent / "slurm" / "train.sbatch"
    _require(args.script.is_file(), f"no batch script {args.script}; name one with --script")
    _require(args.time is None or _TIME.fullmatch(args.time), f"--time={args.time}: expected [DAYS-]HH:MM:SS")
    _require(
        args.seeds is None or _SEEDS.fullmatch(args.seeds),
        f"--seeds={args.seeds}: expected numbers and ranges, as in 0-3 or 0,2,5",
    )
    _require(args.gpus >= 0, f"--gpus={args.gpus}: expected 0 or more")
    for setting in args.settings:
        _require(
            "=" in setting or setting.startswith("--"), f"cannot read {setting!r}: expected field.sub=value"
        )
    output = "%A_%a.out" if args.seeds else "%j.out"
    options = {
        "job-name": recipe.stem,
        "nodes": args.nodes,
        "ntasks-per-node": args.tasks or args.gpus or 1,
        "gpus-per-node": args.gpus or None,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "array": args.seeds,
        "signal": f"B:USR1@{round(60 * args.warn_minutes)}",
        "chdir": Path.cwd(),
        "output": args.logs / output,
    }
    command = ["sbatch", "--requeue", "--open-mode=append", "--export=ALL"]
    command += [f"--{name}={value}" for name, value in options.items() if value is not None]
    command += [*args.sbatch, str(args.script), str(recipe), *args.settings]
    variables = {
        "RALIGN_PYTHON": sys.executable,
        "RALIGN_LOGS": str(args.logs),
        "RALIGN_MAX_RESTARTS": str(args.max_restarts),
    }
    names = [setting.partition("=")[2] for setting in args.settings if setting.startswith("name=")]
    if args.seeds and names:
        variables["RALIGN_NAME"] = names[-1]
    return command, variables


def _recipe(name: str) -> Path:
    """The file of a recipe given by path or by name."""
    for path in (Path(name), Path("recipes") / f"{name}.py"):
        if path.is_file():
            return path
    raise UserError(f"no recipe {name}: neither a file nor recipes/{name}.py")


def _require(condition: object, message: str) -> None:
    if not condition:
        raise UserError(message)


def _parser() -> Parser:
    parser = Parser(
        prog="ralign-submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="file of the recipe, or its name in recipes/")
    add("settings", nargs="*", metavar="FIELD=VALUE", help="the recipe's settings (flags after --)")
    add("--nodes", type=positive, required=True, help="number of nodes")
    add("--gpus", type=int, default=8, help="GPUs a node, one task each; 0 for CPUs (default 8)")
    add("--tasks", type=positive, help="tasks a node, where that is not the number of GPUs")
    add("--time", help="time limit, [DAYS-]HH:MM:SS; the run goes on after it (default: the partition's)")
    add("--partition", help="SLURM partition")
    add("--account", help="SLURM account")
    add("--qos", help="SLURM quality of service")
    add("--seeds", help="an array of runs, NAME_seed0, NAME_seed1, ...: 0-3, or 0,2,5")
    add(
        "--warn-minutes",
        type=float,
        default=20,
        help="notice before the end: time for the rest of a step and a checkpoint (default 20)",
    )
    add("--max-restarts", type=int, default=3, help="how often a failed job is queued again (default 3)")
    add("--logs", type=Path, default=Path("runs/slurm"), help="folder of the logs (default runs/slurm)")
    add("--script", type=Path, help="batch script (default: slurm/train.sbatch beside the recipe)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed to sbatch as it is; repeatable",
    )
    add("--dry-run", action="store_true", help="print what would be submitted, and submit nothing")
    return parser


if __name__ == "__main__":
    main()
