"""Options that the commands of `ralign-eval` share, and what they mean to endpoints and MetaRMs."""

import argparse

from ralign.engine.runtime.argparse_utils import positive
from ralign.engine.runtime.errors import UserError


def add_scoring(parser: argparse.ArgumentParser) -> None:
    """The options of whatever ends in a summary."""
    parser.add_argument(
        "--by", default="source", metavar="FIELD", help="field that names the subset, dots inside (source)"
    )
    parser.add_argument("--bootstrap", type=positive, default=2000, metavar="N", help="draws (2000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap and of sampling (0)")
    parser.add_argument(
        "--max-bad-lines", type=int, default=0, metavar="N", help="go on without up to N bad lines a file (0)"
    )
    parser.add_argument(
        "--released",
        metavar="FOLDER",
        help="also write the judged files here as TEST__MODEL.jsonl, as the released summary names them",
    )


def add_metarm_options(parser: argparse.ArgumentParser) -> None:
    """How a MetaRM that is a language model is asked."""
    group = parser.add_argument_group("MetaRM that is a language model")
    group.add_argument(
        "--metarm-template", default="binary", help="binary, graded, compact, or a file (binary)"
    )
    group.add_argument(
        "--metarm-graded-threshold",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="graded: share of the golden points that a Correct judgment covers (0.5)",
    )
    group.add_argument("--metarm-temperature", type=float, default=0.4, help="(0.4)")
    group.add_argument("--metarm-max-new-tokens", type=positive, default=16384, help="(16384)")
    group.add_argument("--metarm-tries", type=positive, default=10, help="questions until one parses (10)")
    group.add_argument(
        "--metarm-price",
        nargs=2,
        type=float,
        metavar=("IN", "OUT"),
        help="of a million of its prompt and answer tokens",
    )
    group.add_argument("--metarm-tensor", type=positive, default=1, metavar="N", help="managed: GPUs (1)")
    group.add_argument(
        "--metarm-devices", metavar="LIST", help="managed: its CUDA_VISIBLE_DEVICES (those of this process)"
    )
    group.add_argument("--metarm-max-model-len", type=positive, metavar="N", help="managed: longest sequence")
    group.add_argument(
        "--metarm-gpu-memory-utilization", type=float, default=0.35, help="managed: share of memory (0.35)"
    )


def add_endpoint_options(parser: argparse.ArgumentParser) -> None:
    """What holds for every endpoint."""
    group = parser.add_argument_group("endpoints")
    group.add_argument(
        "--api-key-env", default="OPENAI_API_KEY", help="variable with the key (OPENAI_API_KEY)"
    )
    group.add_argument("--concurrency", type=positive, default=64, help="requests under way at once (64)")
    group.add_argument("--timeout-s", type=float, default=600.0, help="of one request (600)")
    group.add_argument("--retries", type=int, default=5, help="of what can be retried (5)")
    group.add_argument(
        "--budget-tokens",
        type=positive,
        metavar="N",
        help="stop when a model or the MetaRM has used so many, earlier runs of this command included",
    )
    group.add_argument(
        "--budget-cost",
        type=float,
        metavar="X",
        help="stop when a model or the MetaRM with a price has cost so much, likewise",
    )
    group.add_argument("--cache", metavar="FOLDER", help="answers already paid for")


def endpoint_fields(args: argparse.Namespace, price: list[float] | None) -> dict[str, object]:
    """Fields of an endpoint's settings; price: of a million prompt and answer tokens, None if it costs nothing."""
    price_in, price_out = price or (0.0, 0.0)
    return {
        "api_key_env": args.api_key_env,
        "concurrency": args.concurrency,
        "timeout_s": args.timeout_s,
        "num_retries": args.retries,
        "budget_tokens": args.budget_tokens,
        "budget_cost": args.budget_cost if price else None,
        "price_in": price_in,
        "price_out": price_out,
        "cache": args.cache,
    }


def read_metarm(args: argparse.Namespace):
    """The `JudgeConfig` that the options ask for, checked; None for a rule."""
    if args.budget_cost is not None and not (args.metarm_price or getattr(args, "price", None)):
        raise UserError(
            f"--budget-cost {args.budget_cost:g} needs a price: --metarm-price, or --price of models"
        )
    from ralign.engine.config.judge import ServerConfig
    from ralign.engine.evaluation.reviewers import metarm_config

    server = ServerConfig(
        tensor=args.metarm_tensor,
        devices=args.metarm_devices,
        max_model_len=args.metarm_max_model_len,
        gpu_memory_utilization=args.metarm_gpu_memory_utilization,
    )
    return metarm_config(
        args.metarm,
        template=args.metarm_template,
        graded=args.metarm_template == "graded",
        graded_threshold=args.metarm_graded_threshold,
        temperature=args.metarm_temperature,
        max_new_tokens=args.metarm_max_new_tokens,
        num_tries=args.metarm_tries,
        server=server,
        **endpoint_fields(args, args.metarm_price),
    )
