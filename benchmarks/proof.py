"""The demo over seeds: every arm of recipes/r_align_mini.py, the spread of seeds, and criteria that were set before.

    python benchmarks/proof.py --seeds 0-9 --processes 1 2
    python benchmarks/proof.py --seeds 0-4 --name warm_starts --set sft.competence=0.6

Each seed is one run with its own pairs, weights and samples; the unit of every statement is the seed. A run that is in
the results already is not repeated. The results go to benchmarks/results/NAME.json, one entry a run, with the CPU, the
threads and the commit. The table has the median and the range over seeds. The criteria hold for a seed if all of
`CRITERIA` do; they are printed for each run, met or not.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
METRICS = ("l_acc", "s_corr", "f_score", "worst_group_l_acc", "flip_rate")

Result = dict[str, dict[str, dict[str, float | None]]]  # model -> test -> metric -> per cent


class Criterion(NamedTuple):
    """A bound on one figure of one arm, in per cent."""

    arm: str
    test: str
    metric: str
    is_at_least: bool
    bound: float

    def holds(self, result: Result) -> bool:
        value = result[self.arm][self.test][self.metric]
        return value is not None and (value >= self.bound if self.is_at_least else value <= self.bound)

    def __str__(self) -> str:
        sign = ">=" if self.is_at_least else "<="
        return f"{self.arm} {self.test} {self.metric} {sign} {self.bound:g}"


CRITERIA = (
    Criterion("r_align_twins", "unbiased", "l_acc", True, 90),
    Criterion("r_align_twins", "unbiased", "s_corr", False, 5),
    Criterion("r_align_twins", "unbiased", "flip_rate", False, 5),
    Criterion("rlvr", "unbiased", "l_acc", False, 75),
    Criterion("rlvr", "unbiased", "flip_rate", True, 40),
)


def main() -> None:
    args = read_args()
    path = RESULTS / f"{args.name}.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    done = {(run["seed"], run["processes"], tuple(run["settings"])) for run in runs}
    for seed in args.seeds:
        for processes in args.processes:
            if (seed, processes, tuple(args.set)) in done:
                continue
            runs.append(one_run(args, seed, processes))
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(runs, indent=1) + "\n")
            print(f"seed {seed}, {processes} processes: {verdict_on(runs[-1]['result'])}", flush=True)
    print(table([run["result"] for run in runs]))


def read_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=_range, default=range(10), metavar="FIRST-LAST")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--name", default="proof", help="of the results file")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="further settings of the recipe"
    )
    parser.add_argument("--runs", default="runs", help="folder of the runs")
    return parser.parse_args()


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def one_run(args: argparse.Namespace, seed: int, processes: int) -> dict[str, Any]:
    """Run the recipe once, and read its summary."""
    name = f"{args.name}_seed{seed}_dp{processes}"
    launch = [sys.executable, "-m", "ralign.engine.runtime.launch", "--standalone"]
    settings = [f"name={name}", f"out={args.runs}", f"seed={seed}", f"data.world.seed={seed}", *args.set]
    subprocess.run(
        [*launch, "--nproc-per-node", str(processes), str(ROOT / "recipes" / "r_align_mini.py"), *settings],
        env={**os.environ, "OMP_NUM_THREADS": str(args.threads)},
        check=True,
    )
    folder = Path(args.runs) / name
    summary = json.loads((folder / "report" / "summary.json").read_text())
    steps = [json.loads(line) for line in (folder / "sft" / "metrics.jsonl").read_text().splitlines()]
    return {
        "seed": seed,
        "processes": processes,
        "threads": args.threads,
        "settings": args.set,
        "cpu": cpu_name(),
        "commit": subprocess.check_output(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], text=True
        ).strip(),
        "time_s": summary["time_s"],
        "sft_steps": len(steps),
        "competence": steps[-1].get("policy/competence"),
        "result": {
            model: {test: percentages(found) for test, found in tests.items()}
            for model, tests in summary["models"].items()
        },
    }


def percentages(found: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of one model on one test, in per cent; the flip rate is that of the recipe's first kind of twins."""
    flips = next(iter(found["flip_rate"].values())) if found.get("flip_rate") else {"value": None}
    cells = {**found, "flip_rate": flips}
    return {
        name: None if (value := cells[name]["value"]) is None else round(100 * value, 2) for name in METRICS
    }


def cpu_name() -> str:
    """The processor's name, as Linux tells it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def verdict_on(result: Result) -> str:
    """Which of the criteria fail; only those whose arm was trained count."""
    counted = [criterion for criterion in CRITERIA if criterion.arm in result]
    failed = [str(criterion) for criterion in counted if not criterion.holds(result)]
    return "failed: " + "; ".join(failed) if failed else f"all {len(counted)} criteria hold"


def table(results: Sequence[Result]) -> str:
    """Median (lowest to highest) over the runs, in per cent, as Markdown."""
    models = list(dict.fromkeys(model for result in results for model in result))
    tests = list(dict.fromkeys(test for result in results for test in next(iter(result.values()))))
    lines = [f"| judge | test | {' | '.join(METRICS)} |", "|---" * (2 + len(METRICS)) + "|"]
    for model in models:
        for test in tests:
            cells = [
                _cell([result[model][test][metric] for result in results if model in result])
                for metric in METRICS
            ]
            lines.append(f"| {model} | {test} | {' | '.join(cells)} |")
    held = sum(not verdict_on(result).startswith("failed") for result in results)
    return "\n".join([*lines, f"all criteria hold in {held} of {len(results)} runs"])


def _cell(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{median(known):.1f} ({min(known):.1f} to {max(known):.1f})"


if __name__ == "__main__":
    main()
