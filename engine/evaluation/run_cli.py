"""`ralign-eval run`: pairs through models and a MetaRM."""

import argparse
from contextlib import closing
from pathlib import Path

from ralign.engine.errors import UserError
from ralign.engine.evaluation.asking import (
    add_endpoint_options,
    add_metarm_options,
    add_scoring,
    endpoint_fields,
    read_metarm,
)
from ralign.engine.options import positive

_RUN = """\
Judges pairs files with models, lets a MetaRM review every right verdict, and writes judged files, tables, plot and
page. A model is a Hugging Face folder, loaded into this process by vLLM, endpoint:URL#MODEL, or judged:FILE, whose
answers are there already; NAME=MODEL gives it a name. The MetaRM is `rule` (JudgeWorld's), `keywords` (a baseline),
endpoint:URL#MODEL, or managed:FOLDER (a server is started for it). The same command again goes on where it was
stopped or killed."""


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
        "--gpu-memory-utilization", type=float, default=0.9, help="share of a GPU's memory (0.9)"
    )
    run.set_defaults(call=_run)


def _run(args: argparse.Namespace) -> None:
    from ralign.engine.data.pairs import read_pairs
    from ralign.engine.evaluation.metarms import build_reviewer
    from ralign.engine.evaluation.models import parse_models
    from ralign.engine.evaluation.output import summarise, write_outputs
    from ralign.engine.evaluation.score import read_files
    from ralign.engine.judging.prompts import load_template
    from ralign.engine.report.progress import Progress
    from ralign.engine.report.terminal import print_summary

    template = load_template(args.template)
    sampling = {"temperature": args.temperature, "max_new_tokens": args.max_new_tokens}
    names = (
        "seed",
        "plain",
        "tensor",
        "max_model_len",
        "max_num_seqs",
        "kv_cache_gib",
        "gpu_memory_utilization",
    )
    local = {name: getattr(args, name) for name in names}
    models = parse_models(args.model, sampling | local, sampling | endpoint_fields(args))
    metarm = read_metarm(args)
    tests = {}
    for path in map(Path, args.pairs):
        if path.stem in tests:
            raise UserError(
                f"--pairs {path}: another file is named {path.stem} too; a test needs its own name"
            )
        tests[path.stem] = read_pairs(path, max_bad_lines=args.max_bad_lines)
    progress = Progress()
    files = []
    with closing(build_reviewer(args.metarm, metarm, Path(args.out) / "metarm_server.log")) as reviewer:
        for name, model in models.items():
            files += _judge(name, model, tests, template, reviewer, args, progress)
    judged = read_files(files)
    summary = summarise(
        judged,
        subset_field=args.by,
        num_bootstrap=args.bootstrap,
        seed=args.seed,
        time_s=progress.time_s,
    )
    page = write_outputs(summary, judged, Path(args.out) / "report", subset_field=args.by)
    print_summary(summary)
    print(f"Page: {page}")


def _judge(name, model, tests, template, reviewer, args, progress) -> list[str]:
    """Judges every test with one model; returns `NAME=FILE` for each judged file."""
    from ralign.engine.evaluation.journal import Journal
    from ralign.engine.evaluation.records import write_records
    from ralign.engine.evaluation.run import Evaluation

    out = Path(args.out)
    evaluations = {}
    for test, pairs in tests.items():
        journal = out / "work" / name / test
        answers = _answer_settings(model, pairs, template)
        evaluations[test] = Evaluation(
            pairs=pairs[: args.limit],
            template=template,
            both_orders=args.both_orders,
            judge=None,
            metarm=reviewer,
            answers=Journal(journal.with_name(f"{test}.answers.jsonl"), answers),
            reviews=Journal(journal.with_name(f"{test}.reviews.jsonl"), _review_settings(args, pairs)),
            progress=progress,
        )
        model.fill(evaluations[test].answers, evaluations[test].pairs)
    judge = None
    if any(evaluation.num_missing() for evaluation in evaluations.values()):
        with progress.stage(f"start_{name}", f"Start of {name}"):
            judge = model.start()
    files = []
    for test, evaluation in evaluations.items():
        evaluation.judge = judge
        title = f"{name} on {test}"
        with progress.stage(f"judge_{name}", title, num_steps=evaluation.num_missing()):
            evaluation.run()
        if evaluation.problems:
            first = next(iter(evaluation.problems.values()))
            progress.say(
                f"{len(evaluation.problems)} calls failed for good and are counted as failures (first: {first});"
                " the same command asks them again"
            )
        path = out / "judgments" / name / f"{test}.jsonl"
        write_records(evaluation.records(name, args.metarm), path)
        evaluation.answers.close()
        evaluation.reviews.close()
        files.append(f"{name}={path}")
    if judge is not None:
        judge.close()
    return files


def _answer_settings(model, pairs, template: str) -> dict[str, object]:
    """What an answer depends on; the golden judgment does not reach the judge."""
    from ralign.engine.evaluation.models import hash_of

    shown = [[pair.id, pair.conversations, pair.response_A, pair.response_B] for pair in pairs]
    return {"pairs": hash_of(shown), "template": hash_of(template), **model.settings()}


def _review_settings(args: argparse.Namespace, pairs) -> dict[str, object]:
    """What a review depends on, beside the answer."""
    from ralign.engine.evaluation.models import hash_of

    goldens = hash_of([[pair.id, pair.gt_judgment] for pair in pairs])
    if args.metarm in ("rule", "keywords"):
        return {"metarm": args.metarm, "goldens": goldens}
    from ralign.engine.judging.lm_metarm import load_metarm_template

    template = load_metarm_template(args.metarm_template, graded=args.metarm_template == "graded")
    return {
        "metarm": args.metarm,
        "goldens": goldens,
        "template": hash_of(template),
        "temperature": args.metarm_temperature,
        "max_new_tokens": args.metarm_max_new_tokens,
    }
