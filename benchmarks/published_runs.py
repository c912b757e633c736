"""The planner's predictions for published runs: the tables of docs/scale.md.

    python benchmarks/published_runs.py

prints the comparison and, for each run, its command and the terms of its time.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ralign.engine.planner import cli
from ralign.engine.planner.terms import short

PROMPT_TOKENS = 104  # 571 tokens/s per GPU x 376 s x 32 GPUs / 2,048 samples, less the 3,251 generated
LONGEST = 4096  # of prompt and answer together

# Published name -> phases of a plan.
COLUMNS = {
    "generate": ("generate",),
    "logprobs": ("logprobs",),
    "train": ("learn", "update"),
    "refit": ("sync", "offload"),
}


@dataclass(frozen=True, kw_only=True)
class Published:
    """A run of GRPO on Qwen3-32B with 64 prompts x 32 answers and 4 updates a step.

    Attributes:
        source: of the figures, as named in docs/scale.md.
        mean_new_tokens: mean length of an answer.
        total_s, seconds: of a step, and of its phases if published.
        tokens_per_s_per_gpu: including prompts; None if not published.
    """

    source: str
    num_gpus: int
    tensor: int
    pipeline: int
    generate_tensor: int
    mean_new_tokens: int
    total_s: float
    seconds: dict[str, float]
    tokens_per_s_per_gpu: float | None

    def argv(self) -> list[str]:
        """Arguments of `ralign-plan`."""
        new_tokens = LONGEST - PROMPT_TOKENS
        return [
            "r_align_32b",
            *("--gpus", str(self.num_gpus), "--gpu", "h100", "--terms"),
            *(f"--mean-prompt-tokens={PROMPT_TOKENS}", f"--mean-new-tokens={self.mean_new_tokens}"),
            f"parallel.tensor={self.tensor}",
            f"parallel.pipeline={self.pipeline}",
            f"generator.tensor={self.generate_tensor}",
            *("algo.num_prompts=64", "algo.num_samples=32", "algo.num_updates=4"),
            *("algo.reward=label", "metarm.kind=none"),
            f"token_budget={LONGEST}",
            f"data.max_prompt_tokens={PROMPT_TOKENS}",
            f"generator.max_new_tokens={new_tokens}",
            f"eval.max_new_tokens={new_tokens}",
        ]

    @cached_property
    def report(self) -> dict:
        """The report of `ralign-plan --json`."""
        return cli.report_of(self.argv())


RUNS = (
    Published(
        source="NeMo-RL v0.5",
        num_gpus=32,
        tensor=4,
        pipeline=4,
        generate_tensor=4,
        mean_new_tokens=3251,
        total_s=376,
        seconds={},
        tokens_per_s_per_gpu=571,
    ),
    Published(
        source="NeMo-RL v0.3",
        num_gpus=64,
        tensor=4,
        pipeline=2,
        generate_tensor=4,  # not published; from the later recipe
        mean_new_tokens=3283,
        total_s=213,
        seconds={"generate": 96, "logprobs": 40, "train": 68, "refit": 7},
        tokens_per_s_per_gpu=None,
    ),
)


def comparison() -> str:
    """Each run, the plan for its layout, their ratio, and the plan's best layout for the GPUs, as Markdown."""
    head = ["GPUs", "", "layout", *COLUMNS, "total", "tokens/s a GPU"]
    rows = [_row(*head), "|---" * len(head) + "|"]
    for run in RUNS:
        layout = f"t{run.tensor} p{run.pipeline}, generate {run.generate_tensor}"
        published = [run.seconds.get(name) for name in COLUMNS] + [run.total_s, run.tokens_per_s_per_gpu]
        planned = _figures(run.report["layout"])
        best = run.report["best"][0]
        ratios = [
            None if theirs is None or ours < 1 else theirs / ours
            for theirs, ours in zip(published, planned, strict=True)
        ]
        rows += [
            _row(str(run.num_gpus), run.source, layout, *_cells(published, "{:.0f}")),
            _row("", "plan", short(run.report["layout"]), *_cells(planned, "{:.1f}")),
            _row("", "published / plan", "", *_cells(ratios, "{:.2f}")),
            _row("", "plan's best", short(best), *_cells(_figures(best), "{:.1f}")),
        ]
    return "\n".join(rows)


def _figures(layout: dict) -> list[float]:
    """Seconds of a planned layout by column, their total, and tokens/s per GPU."""
    seconds = layout["time_s"]
    columns = [sum(seconds.get(phase, 0.0) for phase in phases) for phases in COLUMNS.values()]
    return [*columns, seconds["total"], layout["tokens_per_s_per_gpu"]]


def _cells(figures: Sequence[float | None], form: str) -> list[str]:
    return ["" if figure is None else form.format(figure) for figure in figures]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def command(run: Published) -> str:
    """The command line, in lines with continuations."""
    lines, words = [], shlex.join(["ralign-plan", *run.argv()]).split()
    for word in words:
        if lines and len(lines[-1]) + len(word) < 96:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n    ".join(lines)


def terms(run: Published) -> str:
    """The terms of the run's layout, as the command prints them."""
    return cli.terms_table(run.report["layout"])


if __name__ == "__main__":
    print(comparison())
    for published in RUNS:
        print(f"\n{command(published)}\n\n{terms(published)}")
