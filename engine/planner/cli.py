"""ralign-plan RECIPE --gpus N --gpu h100: memory, time and better layouts of a run.

Prints the memory of one GPU in each phase of a step (for the fullest pipeline stage), pinned host memory, the
predicted time of a step, tokens a day, advice, and the three best layouts. --terms adds the terms of the time. The exit
status is 0 if the recipe's own layout fits and 2 if it does not.
"""

import argparse
import importlib
import importlib.util
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from ralign.engine.config.checks import LAYOUT_SIZES
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import Run
from ralign.engine.config.validation import validate, validate_layout
from ralign.engine.planner import layouts
from ralign.engine.planner.hardware import CHIPS, Chip, Constants, chip_of, read_constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.shapes import shape_of
from ralign.engine.planner.terms import terms_rows
from ralign.engine.runtime.argparse_utils import Parser, number, whole_number
from ralign.engine.runtime.entry_point import run_main
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import check_input
from ralign.engine.runtime.text import printable
from ralign.engine.runtime.user_code import named_by_line, run_module
from ralign.engine.runtime.whole_numbers import check_whole_numbers

RECIPES = Path(__file__).resolve().parents[2] / "recipes"  # in the source tree and in an installed package
_MAX_GPUS = 1_000_000
HOST_GB = 256.0  # per GPU, on a node with 8 GPUs and 2 TB
LENGTHS = ("mean_prompt_tokens", "mean_new_tokens")


def main(argv: list[str]) -> None:
    options, overrides = _parser().parse_known_args(argv)
    report = _report(options, overrides)
    print(json.dumps(report, indent=2) if options.json else as_text(report, terms=options.terms))
    if report["problems"]:
        raise UserError(report["refusal"])


def report_of(argv: list[str]) -> dict:
    """The output of this command line with --json.

    Raises:
        UserError: settings that are invalid on every machine.
    """
    return _report(*_parser().parse_known_args(argv))


def _report(options: argparse.Namespace, overrides: list[str]) -> dict:
    chip, constants = chip_of(options.gpu), read_constants(options.constants)
    lengths = {name: value for name in LENGTHS if (value := vars(options)[name]) is not None}
    run = recipe_with(options.recipe, overrides)
    return plan(run, options.gpus, chip, replace(constants, **lengths), host_gb=options.host_gb)


def entry_point() -> None:
    run_main(main, sys.argv[1:])


def _parser() -> Parser:
    parser = Parser(
        prog="ralign-plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings of the recipe follow the options as field.sub=value, for example parallel.tensor=4.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", help="a recipe's file, or the name of a recipe of ralign")
    parser.add_argument(
        "--gpus", type=whole_number(1, _MAX_GPUS), required=True, help="GPUs of the job, over all nodes"
    )
    parser.add_argument("--gpu", default="h100", help=f"{', '.join(CHIPS)}, or memory in GB (default h100)")
    parser.add_argument(
        "--host-gb",
        type=number(0, above=True),
        default=HOST_GB,
        help="host memory per GPU, GB (default: 256)",
    )
    parser.add_argument("--constants", help="JSON file with measured constants of the time model")
    for name, what in zip(LENGTHS, ("prompt", "answer"), strict=True):
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(0),
            help=f"mean {what} length, tokens (default: from --constants, else half of the longest)",
        )
    parser.add_argument("--terms", action="store_true", help="print the terms of the predicted time")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    return parser


def recipe_file(recipe: str) -> Path:
    """The file of a recipe given by path or by name.

    Raises:
        UserError: no such file and no recipe of that name, or a file that is not Python's.
    """
    for path in (Path(recipe), RECIPES / f"{recipe.removesuffix('.py')}.py"):
        if os.path.isfile(path):
            if path.suffix != ".py":
                raise UserError(f"recipe {recipe}: expected a Python file, whose name ends in .py")
            return check_input(path)
    known = ", ".join(sorted(file.stem for file in RECIPES.glob("*.py")))
    raise UserError(f"recipe {recipe}: no such file and no recipe of that name ({known})")


def recipe_with(recipe: str, overrides: Sequence[str]) -> Run:
    """The settings of a recipe with those of the command line.

    Raises:
        UserError: as `recipe_run`; an unknown setting, a value of another kind, or a number beyond 64 bits.
    """
    run = parse(recipe_run(recipe), overrides)
    check_whole_numbers(asdict(run))
    return run


def recipe_run(recipe: str) -> Run:
    """The settings of a recipe, from its first function without arguments annotated `-> Run`.

    Raises:
        UserError: there is no such file, it is not valid Python, or there is no such function in it.
    """
    path = recipe_file(recipe)
    module = _module_of(path)
    for function in vars(module).values():
        if inspect.isfunction(function) and function.__module__ == module.__name__:
            signature = inspect.signature(function)
            found = signature.return_annotation
            is_run = isinstance(found, type) and issubclass(found, Run)
            if (is_run or found == "Run") and not signature.parameters:
                return _called(function, path)
    raise UserError(f"recipe {path}: no function without arguments annotated `-> Run`")


def _module_of(path: Path) -> ModuleType:
    """The module of a recipe: `ralign.recipes.NAME`, or a module made from a user's file."""
    if path.resolve().parent == RECIPES:
        return importlib.import_module(f"ralign.recipes.{path.stem}")
    sys.path.insert(0, str(path.resolve().parent))  # as `python FILE`: a recipe may import its neighbours
    spec = importlib.util.spec_from_file_location(f"ralign_recipe_{path.stem}", path.resolve())
    assert spec is not None, path  # a name that ends in .py has a loader
    return run_module(spec)


def _called(function: Callable[[], Any], path: Path) -> Run:
    with named_by_line(str(path.resolve())):
        run = function()
    if not isinstance(run, Run):
        name, kind = function.__name__, type(run).__name__
        raise UserError(f"recipe {path}: {name}() must return a Run, got {kind}")
    return run


def plan(
    run: Run,
    num_gpus: int,
    chip: Chip,
    constants: Constants,
    *,
    host_gb: float = HOST_GB,
    search: bool = True,
) -> dict:
    """The report of `ralign-plan` as JSON-serialisable values, in bytes and seconds.

    Raises:
        UserError: settings that are invalid on every machine.
    """
    if num_gpus < 1:
        raise UserError(f"--gpus must be at least 1, got {num_gpus}")
    is_here = run.model.hf_path is None or os.path.isfile(Path(run.model.hf_path) / "config.json")
    if is_here:
        validate(replace(run, data=replace(run.data, train=None)), num_gpus)
    shape = shape_of(run.model)
    if not is_here:
        validate_layout(run, num_gpus, {name: asdict(shape)[name] for name in LAYOUT_SIZES})
    job = Job.of(run, num_gpus, shape)
    model_parallel = job.tensor * job.pipeline * job.context
    for name, size in (("layout", model_parallel), ("generator.tensor", job.generate_tensor)):
        if num_gpus % size:
            raise UserError(
                f"{name} of {size} ranks (tensor * pipeline * context) does not divide {num_gpus} GPUs"
            )
    _check_lengths(job, constants)
    requested = layouts.lay_out(job, chip, constants)
    fitting = layouts.fitting(job, chip, constants, host_gb * 1e9) if search else []
    best = layouts.best(fitting)
    problems = requested.ledger.problems()
    if requested.ledger.host_bytes > host_gb * 1e9:
        problems.append(
            f"{requested.ledger.host_bytes / GIB:.1f} GiB of pinned host memory per GPU,"
            f" of {host_gb * 1e9 / GIB:.1f} GiB"
        )
    report = {
        "recipe": run.name,
        "model": {"name": shape.name or "from settings", "num_parameters": shape.num_parameters},
        "gpus": num_gpus,
        "chip": asdict(chip),
        "constants": asdict(constants),
        "layout": _layout_json(requested),
        "problems": problems,
        "advice": [] if problems else layouts.advice(requested, fitting[0] if fitting else None, constants),
        "best": [_layout_json(layout) for layout in best],
    }
    if problems:
        near = layouts.nearest(job, fitting)
        report["nearest"] = _layout_json(near) if near else None
        report["refusal"] = f"{run.name} {layouts.refusal(requested, problems, near, chip)}"
        if near is None and search:
            least = layouts.smallest_world(job, chip, constants, host_gb * 1e9)
            report["refusal"] += f"; {least} GPUs are enough" if least else ""
    return report


def _check_lengths(job: Job, constants: Constants) -> None:
    """Requires that no mean length exceeds the longest length."""
    for name, longest in zip(LENGTHS, (job.max_prompt_tokens, job.max_new_tokens), strict=True):
        mean = asdict(constants)[name]
        if mean and not 1 <= mean <= longest:
            raise UserError(
                f"{name} must be 0 (unknown) or from 1 to {longest}, the longest length, got {mean:g}"
            )


def _layout_json(layout: layouts.Layout) -> dict:
    job, ledger, time = layout.job, layout.ledger, layout.time
    return {
        "settings": layout.settings(),
        "tensor": job.tensor,
        "pipeline": job.pipeline,
        "context": job.context,
        "data": job.data,
        "sequence": job.sequence,
        "recompute": job.recompute,
        "generate_tensor": job.generate_tensor,
        "shares_weights": job.shares_weights,
        "offload": ledger.offload,
        "kv_sleep": ledger.kv_sleep,
        "stage": ledger.stage,
        "memory_bytes": {phase: dict(parts) for phase, parts in ledger.phases.items()},
        "total_bytes": {phase: ledger.total_bytes(phase) for phase in ledger.phases},
        "host_bytes": dict(ledger.host),
        "time_s": time.seconds | {"total": time.total_s},
        "tokens_a_day": time.tokens_a_day,
        "tokens_per_s_per_gpu": time.tokens / time.total_s / job.world_size,
        "terms": [asdict(term) | {"s": term.seconds} for term in time.terms],
    }


def as_text(report: dict, *, terms: bool = False) -> str:
    """The report as text; `terms` adds the terms of the time of its layout and of the best layout."""
    chip, layout = report["chip"], report["layout"]
    head = (
        f"{report['recipe']}: {report['model']['name']}, {report['model']['num_parameters'] / 1e9:.2f} B parameters,"
        f" on {report['gpus']} x {chip['name']} ({chip['memory_bytes'] / GIB:.0f} GiB)"
    )
    cut = (
        f"tensor {layout['tensor']} x pipeline {layout['pipeline']} x context {layout['context']} x data"
        f" {layout['data']}; generate tensor {layout['generate_tensor']}"
        f" ({'shares the weights' if layout['shares_weights'] else 'own copy, gather path'});"
        f" offload {'on' if layout['offload'] else 'off'}, KV sleep {'on' if layout['kv_sleep'] else 'off'}"
    )
    blocks = [printable(head), cut, memory_table(layout, chip["memory_bytes"]), time_table(layout)]
    blocks += [f"Does not fit: {problem}" for problem in report["problems"]]
    if report["advice"]:
        blocks.append("\n".join(f"Advice: {line}" for line in report["advice"]))
    if report["best"]:
        blocks.append("Best layouts that fit:\n" + layouts_table(report["best"]))
    if terms:
        blocks.append(terms_table(layout))
        best = report["best"][:1]
        blocks += [terms_table(other) for other in best if other["settings"] != layout["settings"]]
    return "\n\n".join(blocks)


def memory_table(layout: dict, capacity_bytes: int) -> str:
    """GiB of one GPU, with a row per holder and a column per phase; then host memory."""
    phases = layout["memory_bytes"]
    holders = list(dict.fromkeys(name for parts in phases.values() for name in parts))
    rows = [["GiB a GPU", *phases]]
    for name in holders:
        rows.append([name, *(_gib(parts.get(name)) for parts in phases.values())])
    rows.append(["total", *(_gib(total) for total in layout["total_bytes"].values())])
    rows.append([f"of {capacity_bytes / GIB:.1f}", *(
        f"{total / capacity_bytes:.0%}" for total in layout["total_bytes"].values())])  # fmt: skip
    text = table(rows)
    host = layout["host_bytes"]
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in host.items())
    return (
        text
        + f"\npinned host memory: {_gib(sum(host.values()))} GiB a GPU"
        + (f" ({parts})" if parts else "")
    )


def time_table(layout: dict) -> str:
    """Predicted seconds of each phase of a step, and throughput."""
    rows = [["predicted s a step", *layout["time_s"]], ["", *(f"{s:.1f}" for s in layout["time_s"].values())]]
    throughput = layout["tokens_per_s_per_gpu"]
    return (
        table(rows)
        + f"\n{layout['tokens_a_day'] / 1e9:.2f} billion tokens a day, {throughput:,.0f} tokens/s a GPU"
    )


def terms_table(layout: dict) -> str:
    """The terms of the predicted time: work of one GPU, and its rate or latency."""
    return table(terms_rows(layout))


def layouts_table(found: Sequence[dict]) -> str:
    rows = [["tensor", "pipeline", "context", "data", "generate", "recompute", "offload", "GiB", "s a step",
             "B tokens a day"]]  # fmt: skip
    for layout in found:
        rows.append(
            [
                *(str(layout[name]) for name in ("tensor", "pipeline", "context", "data", "generate_tensor")),
                *("yes" if layout[name] else "no" for name in ("recompute", "offload")),
                _gib(max(layout["total_bytes"].values())),
                f"{layout['time_s']['total']:.0f}",
                f"{layout['tokens_a_day'] / 1e9:.2f}",
            ]
        )
    return table(rows)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:.1f}"


def table(rows: Sequence[Sequence[str]]) -> str:
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(
            zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
