"""`ralign-eval run`: pairs through models and a MetaRM."""

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from ralign.engine.evaluation.cli_options import (
    add_endpoint_options,
    add_metarm_options,
    add_scoring,
    endpoint_fields,
    read_metarm,
)
from ralign.engine.runtime.argparse_utils import positive
from ralign.engine.runtime.errors import UserError

_RUN = """\
Judges pairs files with models, lets a MetaRM review every right verdict, and writes judged files, tables, plot and
page. A model is a Hugging Face folder, loaded into this process by vLLM, endpoint:URL#MODEL, or judged:FILE, whose
answers are there already; NAME=MODEL gives it a name. The MetaRM is `rule` (JudgeWorld's), `keywords` (a baseline),
endpoint:URL#MODEL, or managed:FOLDER (a server is started for it). The same command again goes on where it was
stopped or killed."""
_GPU_SHARE = 0.9  # of a GPU's memory, for all engines on it together


def add_run(commands) -> None:
    """Adds `run`."""
    run = commands.add_parser("run", help="judge pairs with models", description=_RUN)
    run.add_argument("--pairs", nargs="+", required=True, metavar="FILE", help="pairs files; each is a test")
    run.add_argument(
        "--model", nargs="+", required=True, metavar="MODEL", help="[NAME=]FOLDER, endpoint:… or judged:FILE"
    )
    run.add_argument("--metarm", required=True, help="rule, keywords, endpoint:URL#MODEL, managed:FOLDER")
    run.add_argument("--out", required=True, metavar="FOLDER", help="judgments/, report/, and what is done")
    run.add_argument(
        "--both-orders", action="store_true", help="judge each pair a second time, sides swapped"
    )
    run.add_argument("--limit", type=positive, metavar="N", help="only the first N pairs of each file")
    run.add_argument("--template", default="full", help="judge's prompt: full, compact, or a file (full)")
    run.add_argument("--temperature", type=float, default=0.4, help="of the models (0.4)")
    run.add_argument("--max-new-tokens", type=positive, default=8192, help="of a judgment (8192)")
    run.add_argument(
        "--price",
        nargs=2,
        type=float,
        metavar=("IN", "OUT"),
        help="of a million prompt and answer tokens of models behind endpoints",
    )
    add_scoring(run)
    add_metarm_options(run)
    add_endpoint_options(run)
    local = run.add_argument_group("models in folders")
    local.add_argument(
        "--plain", action="store_true", help="ask in plain text, though there is a chat template"
    )
    local.add_argument("--tensor", type=positive, default=1, metavar="N", help="tensor-parallel size (1)")
    local.add_argument(
        "--max-model-len", type=positive, metavar="N", help="longest prompt and answer together"
    )
    local.add_argument(
        "--max-num-seqs", type=positive, default=256, metavar="N", help="decoded at once (256)"
    )
    local.add_argument("--kv-cache-gib", type=float, default=4.0, help="KV cache without a GPU (4)")
    local.add_argument(
        "--gpu-memory-utilization",
        type=float,
        help="share of a GPU's memory (0.9; less the MetaRM's where a managed one is on the same GPU)",
    )
    run.set_defaults(call=_run)


def _run(args: argparse.Namespace) -> None:
    from ralign.engine.data.prompts import load_template
    from ralign.engine.evaluation.output import summarise, write_outputs, write_released
    from ralign.engine.evaluation.run_models import judge_model, open_evaluations, open_metarm
    from ralign.engine.evaluation.score import read_files
    from ralign.engine.report.progress import Progress
    from ralign.engine.report.terminal import print_summary

    template = load_template(args.template)
    models, metarm = _models(args), read_metarm(args)
    tests = _tests(args)
    progress = Progress()
    with ExitStack() as stack:
        evaluations = {
            name: open_evaluations(name, model, tests, template, args, progress, stack)
            for name, model in models.items()
        }
        everything = [evaluation for by_test in evaluations.values() for evaluation in by_test.values()]
        reviewer = None
        if any(evaluation.num_unfinished() for evaluation in everything):
            reviewer = stack.enter_context(closing(open_metarm(args, metarm, everything)))
        files = []
        for name, model in models.items():
            files += judge_model(name, model, evaluations[name], reviewer, args, progress)
    judged = read_files(files)
    summary = summarise(
        judged,
        subset_field=args.by,
        num_bootstrap=args.bootstrap,
        seed=args.seed,
        time_s=progress.time_s,
    )
    page = write_outputs(summary, judged, Path(args.out) / "report", subset_field=args.by)
    if args.released:
        write_released(judged, args.released)
    print_summary(summary)
    print(f"Page: {page}")


def _models(args: argparse.Namespace) -> Mapping:
    from ralign.engine.evaluation.models import FolderModel, parse_models

    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    names = ("seed", "plain", "tensor", "max_model_len", "max_num_seqs", "kv_cache_gib")
    beside = _share_beside(args)
    share = args.gpu_memory_utilization or round(_GPU_SHARE - beside, 3)
    local = sampling | {name: getattr(args, name) for name in names} | {"gpu_memory_utilization": share}
    models = parse_models(args.model, local, sampling | endpoint_fields(args, args.price))
    if (
        any(isinstance(model, FolderModel) for model in models.values())
        and not 0 < share <= 1 - beside + 1e-9
    ):
        raise UserError(
            f"--gpu-memory-utilization {share:g} of the models and --metarm-gpu-memory-utilization {beside:g} are"
            " too much for the GPU that they share: lower one, or give the MetaRM others with --metarm-devices"
            if beside
            else f"--gpu-memory-utilization is a share up to 1, got {share:g}"
        )
    return models


def _share_beside(args: argparse.Namespace) -> float:
    """The share of memory that a managed MetaRM takes of a GPU on which the models in folders are too."""
    if not args.metarm.startswith("managed:"):
        return 0.0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    ours = visible.split(",") if visible else [str(number) for number in range(args.tensor)]
    theirs = (args.metarm_devices or ours[0]).split(",")
    shared = {*ours[: args.tensor]} & {*theirs[: args.metarm_tensor]}
    return args.metarm_gpu_memory_utilization if shared else 0.0


def _tests(args: argparse.Namespace) -> dict[str, list]:
    from ralign.engine.data.pairs import read_pairs

    tests: dict[str, list] = {}
    for path in map(Path, args.pairs):
        if path.stem in tests:
            raise UserError(
                f"--pairs {path}: another file is named {path.stem} too; a test needs its own name"
            )
        tests[path.stem] = read_pairs(path, max_bad_lines=args.max_bad_lines)
    return tests
