"""ralign-submit: submit a recipe as a SLURM job that saves a checkpoint before its time limit, and then resumes.

ralign-submit r_align_32b --nodes 4 --gpus 8 --time 24:00:00 data.train=pairs.jsonl
ralign-submit recipes/r_align_mini.py --nodes 2 --gpus 0 --seeds 0-3 --dry-run
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from ralign.engine.planner.cli import RECIPES, recipe_file
from ralign.engine.planner.hardware import chip_of
from ralign.engine.runtime.argparse_utils import Parser, number, positive, whole_number
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input, check_output_folder, mistakes
from ralign.engine.runtime.problems import Problems
from ralign.engine.runtime.text import printable
from ralign.engine.slurm import notice

_TIME = re.compile(r"([0-9]{1,6}-)?[0-9]{1,9}(:[0-9]{1,9}){0,2}")  # minutes, or [days-]hours:minutes:seconds
_MEMORY = re.compile(r"[0-9]{1,12}[KMGT]?", re.IGNORECASE | re.ASCII)
_RANGE = r"[0-9]{1,7}(-[0-9]{1,7})?"
_SEEDS = re.compile(rf"{_RANGE}(,{_RANGE})*(%[1-9][0-9]{{0,6}})?")  # sbatch's --array
CPUS_PER_GPU = 8  # process, checkpoint thread and engine; nodes of 8 GPUs have at least 96 CPUs


def main() -> None:
    """The console script."""
    run_main(_main)


def _main(argv: list[str]) -> None:
    args = _parser().parse_intermixed_args(argv)
    command, variables = sbatch_command(args)
    spelled = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    print(f"{spelled} {shlex.join(command)}", flush=True)
    if args.dry_run:
        script = args.script.read_text(encoding="utf-8", errors="backslashreplace")
        print(f"\n# {args.script}\n{script}", end="")
        return
    if shutil.which("sbatch") is None:
        raise UserError(
            "sbatch is not installed here: run this on a login node of the cluster (or with --dry-run)"
        )
    with mistakes("write into", args.logs):
        args.logs.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, errors="backslashreplace"
    )
    if done.returncode or not done.stdout.strip():
        raise UserError(f"sbatch refused the job: {done.stderr.strip() or done.stdout.strip()}")
    print(done.stdout.strip())
    job = done.stdout.split()[-1]
    print(f"logs: {args.logs}/{job}*, stop and save: scancel --signal=USR1 --batch {job}")


def sbatch_command(args: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """The sbatch command line and its environment variables.

    Raises:
        UserError: a file is missing, or a value is invalid for SLURM.
    """
    recipe = recipe_file(args.recipe)
    args.script = args.script or _script_for(recipe)
    _check(args)
    options = {
        "job-name": recipe.stem,
        "nodes": args.nodes,
        "ntasks-per-node": args.tasks or args.gpus or 1,
        "gpus-per-node": args.gpus or None,
        "cpus-per-task": args.cpus_per_task or (CPUS_PER_GPU if args.gpus else None),
        "mem": args.mem or ("0" if args.gpus else None),
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "array": args.seeds,
        "signal": f"B:USR1@{_notice_s(args, recipe)}",
        "chdir": Path.cwd(),
        "output": args.logs / ("%A_%a.out" if args.seeds else "%j.out"),
    }
    command = ["sbatch", "--requeue", "--open-mode=append", "--export=ALL"]
    command += [f"--{name}={value}" for name, value in options.items() if value is not None]
    command += [*args.sbatch, str(args.script), str(recipe), *args.settings]
    variables = {
        "RALIGN_PYTHON": sys.executable,
        "RALIGN_LOGS": str(args.logs),
        "RALIGN_MAX_RESTARTS": str(args.max_restarts),
    }
    if args.seeds and (names := _values("name", args.settings)):
        variables["RALIGN_NAME"] = names[-1]
    return command, variables


def _values(name: str, settings: Sequence[str]) -> list[str]:
    """All values of a setting: `NAME=VALUE`, `--NAME=VALUE`, or `--NAME VALUE`."""
    values = []
    for word, following in zip_longest(settings, settings[1:]):
        given, equals, value = word.partition("=")
        if equals and given.removeprefix("--") == name:
            values.append(value)
        elif word == f"--{name}" and following is not None:
            values.append(following)
    return values


def _script_for(recipe: Path) -> Path:
    """The batch script beside the recipe, else ralign's."""
    beside = recipe.parent / "slurm" / "train.sbatch"
    return beside if beside.is_file() else RECIPES / "slurm" / "train.sbatch"


def _check(args: argparse.Namespace) -> None:
    """Raises UserError with all mistakes of the options and the settings' form."""
    problems = Problems()
    with problems.collect():
        check_input(args.script)
    with problems.collect():
        check_output_folder(args.logs)
    require = problems.require
    require(
        args.time is None or _TIME.fullmatch(args.time) is not None,
        f"--time={args.time}: expected [DAYS-]HH:MM:SS",
    )
    require(
        args.seeds is None or _are_seeds(args.seeds),
        f"--seeds={args.seeds}: expected numbers and ranges, as in 0-3 or 0,2,5",
    )
    for name in ("partition", "account", "qos"):
        value = getattr(args, name)
        is_name = value is None or (value.isprintable() and re.fullmatch(r"[^\s-]\S*", value) is not None)
        require(is_name, f"--{name}={value!r}: expected a name")
    if args.seeds and (seeds := _values("seed", args.settings)):
        problems.add(f"--seeds={args.seeds} sets the seed of each run: leave out seed={seeds[-1]}")
    require(
        args.mem is None or _MEMORY.fullmatch(args.mem) is not None,
        f"--mem={args.mem}: expected a size, as in 500G, or 0",
    )
    for word in _strays(args.sbatch, "-"):
        problems.add(f"--sbatch={word!r}: expected an option of sbatch, as in --sbatch=--exclusive")
    for setting in _strays(args.settings, "--"):
        require("=" in setting, f"cannot read {setting!r}: expected field.sub=value")
    problems.check()


def _are_seeds(text: str) -> bool:
    """Whether this is sbatch's form of an array, with ascending ranges."""
    if _SEEDS.fullmatch(text) is None:
        return False
    ranges = (part.split("-") for part in text.partition("%")[0].split(","))
    return all(int(ends[0]) <= int(ends[-1]) for ends in ranges)


def _strays(words: Sequence[str], dashes: str) -> list[str]:
    """Words that are neither an option, which begins with `dashes`, nor the value after one."""
    strays, is_value = [], False
    for word in words:
        is_option = word.startswith(dashes)
        if not (is_option or is_value):
            strays.append(word)
        is_value = is_option and "=" not in word
    return strays


def _notice_s(args: argparse.Namespace, recipe: Path) -> int:
    """Seconds of notice before the time limit; prints their reason on stderr."""
    chip, prediction = chip_of(args.gpu), None
    has_flags = any(word.startswith("--") and "=" not in word for word in args.settings)
    if args.gpus and not has_flags and (run := notice.planned_run(recipe, args.settings)):
        try:
            prediction = notice.predict(run, args.nodes * (args.tasks or args.gpus), chip)
        except UserError as error:
            print(f"# no prediction of a step: {printable(str(error))}", file=sys.stderr)
    limit_s = notice.limit_s(args.time or "0") or None  # in SLURM, 0 means no limit
    seconds, remark = notice.choose(args.warn_minutes, limit_s, prediction)
    if remark:
        print(f"# {printable(remark)}", file=sys.stderr)
    return seconds


def _parser() -> Parser:
    parser = Parser(
        prog="ralign-submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", metavar="RECIPE", help="a recipe's file, or the name of a recipe of ralign")
    add("settings", nargs="*", metavar="FIELD=VALUE", help="the recipe's settings (flags after --)")
    add("--nodes", type=positive, required=True, help="number of nodes")
    add(
        "--gpus", type=whole_number(0), default=8, help="GPUs per node, one task each; 0 for CPUs (default 8)"
    )
    add("--tasks", type=positive, help="tasks per node (default: one per GPU)")
    add(
        "--gpu",
        default="h100",
        help="kind of GPU for the prediction of a step, as in ralign-plan (default h100)",
    )
    add(
        "--cpus-per-task",
        type=positive,
        help=f"CPUs per task (default {CPUS_PER_GPU} with GPUs, else SLURM's default); best: a node's CPUs / its GPUs",
    )
    add("--mem", help="host memory per node (default: all of it with GPUs, else SLURM's default)")
    add(
        "--time",
        help="time limit, [DAYS-]HH:MM:SS; the job is queued again after it (default: the partition's)",
    )
    add("--partition", help="SLURM partition")
    add("--account", help="SLURM account")
    add("--qos", help="SLURM quality of service")
    add("--seeds", help="an array of runs, NAME_seed0, NAME_seed1, ...: 0-3, or 0,2,5")
    add(
        "--warn-minutes",
        type=number(0, notice.MAX_S // 60, above=True),
        help="minutes of notice before the time limit, for the rest of a step and a checkpoint (default: 1.5 times the "
        "prediction of ralign-plan, at least 20, at most half of --time)",
    )
    add(
        "--max-restarts",
        type=whole_number(0),
        default=3,
        help="number of times that a failed job is queued again (default 3)",
    )
    add("--logs", type=Path, default=Path("runs/slurm"), help="folder of the logs (default runs/slurm)")
    add(
        "--script",
        type=Path,
        help="batch script (default: slurm/train.sbatch beside the recipe, else ralign's)",
    )
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="passed to sbatch unchanged; repeatable",
    )
    add("--dry-run", action="store_true", help="print the command and the batch script, and submit nothing")
    return parser


if __name__ == "__main__":
    main()
