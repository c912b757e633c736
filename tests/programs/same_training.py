"""Shows that two checkouts train bit-identically: `record` runs short trainings, `compare` compares two records.

    python tests/programs/same_training.py record OUT [--tree DIR] [--cases a,b]
    python tests/programs/same_training.py compare BEFORE AFTER

`record` trains with the code in DIR, on CPU, and writes OUT/CASE/: the run folder, log.txt, each stage's metrics.jsonl
as STAGE.jsonl, and outcome.jsonl with a checksum of each stage's exported weights and the values of
report/summary.json. DIR needs a built extension (kernels/_packing*.so). `compare` requires equal values, but for times
and for memory that the operating system counts; its exit status is 1 if any differs. Nothing here imports torch or
ralign: the code in DIR may be older than this file.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

# Applied to the keys of BEFORE that AFTER has not: old key -> new key.
RENAMED_METRICS = {
    "judge/first_seat_share": "judge/first_position_share",
    "judge/swap_consistency": "reward/twin_consistency",
}
# A path that older trees have not -> what their settings were: new text -> old text.
OLD_SETTINGS = {
    "engine/config": {"genrm.model=": "actor.genrm="},
    "engine/algorithms/coupling.py": {"algo.partner=order algo.couple=True": "algo.both_orders=True"},
}
# Measured, not computed: two records of the same code differ in these.
NOT_COMPARED = re.compile(r"(.*/)?time_s/.*|memory/(\w+_used|host)_gib")
NUM_PROCESSES = 2


@dataclass(frozen=True)
class Case:
    """A recipe with settings; `{NAME}` in them is the run folder of the case NAME, which runs first."""

    recipe: str
    settings: str

    @property
    def needs(self) -> list[str]:
        return [name for _, name, _, _ in string.Formatter().parse(self.settings) if name is not None]


_SHORT = (
    "seed=0 num_steps=5 algo.num_prompts=16 algo.num_samples=4 generator.max_new_tokens=40 rollouts_every=0"
    " eval.num_pairs=16 eval.num_bootstrap=50 eval.max_new_tokens=40 data.world.num_test=16"
)
# Answers that earn nothing leave a model as it is: two cases learn to answer by SFT, and the others start from them.
_FRESH_SFT = "sft.num_steps=200 sft.optim.lr=4e-3"
_MINI = "sft.competence=0 arms=rlvr,r_align"
_FROM_SFT = f"{_SHORT} {_MINI} sft.num_steps=5 model.hf_path={{r_align_dp2}}/sft/hf"
CASES = {
    "r_align_dp2": Case("r_align_mini", f"{_SHORT} {_MINI} {_FRESH_SFT} sft.num_samples=16"),
    "r_align_tp2": Case("r_align_mini", f"{_FROM_SFT} parallel.tensor=2"),
    "r_align_pp2": Case("r_align_mini", f"{_FROM_SFT} parallel.pipeline=2"),
    "r_align_kl": Case(
        "r_align_mini",
        f"{_FROM_SFT} parallel.tensor=2 parallel.sequence=True"
        " algo.kl_coef=0.05 algo.num_updates=2 algo.advantages=rloo algo.partner=order algo.couple=True",
    ),
    "r_align_bf16": Case(
        "r_align_mini",
        f"{_FROM_SFT} num_steps=3 parallel.context=2 parallel.dtype=bf16 parallel.recompute=True"
        " algo.advantages=dr_grpo algo.objective=cispo algo.dual_clip=None algo.num_updates=2",
    ),
    "r_align_offload": Case(
        "r_align_mini",
        f"{_FROM_SFT} num_steps=3 parallel.tensor=2 generator.tensor=1 generator.verify=every"
        " memory.offload=always memory.kv_sleep=always checkpoint_every=2"
        " algo.advantages=rloo algo.ratio=sequence algo.normalisation=sequence algo.entropy_coef=0.01",
    ),
    "actor_ppo": Case(
        "actor_rlhf_mini",
        f"{_SHORT} num_steps=3 {_FRESH_SFT} algo.advantages=gae critic.warmup_steps=1",
    ),
    "actor_grpo": Case(
        "actor_rlhf_mini",
        f"{_SHORT} num_steps=3 sft.num_steps=5 model.hf_path={{actor_ppo}}/sft/hf"
        " genrm.model={r_align_dp2}/r_align/hf",
    ),
    "paper": Case(
        "paper_in_miniature",
        "seed=0 budgets=2 judges.sft.num_steps=5 judges.algo.num_prompts=16 judges.algo.num_samples=4"
        " judges.eval.num_pairs=16 judges.eval.num_bootstrap=50 judges.data.world.num_test=16"
        " judges.model.hf_path={r_align_dp2}/sft/hf actors.model.hf_path={r_align_dp2}/sft/hf"
        " actors.sft.num_steps=30 actors.num_steps=2 actors.algo.num_prompts=8 actors.algo.num_samples=4"
        " actors.eval.num_pairs=16 actors.eval.num_bootstrap=50",
    ),
}


def record(out: Path, tree: Path, names: list[str]) -> None:
    """Runs the named cases, and those that they need and `out` does not hold, with the code in `tree`."""
    missing = [
        name for name in _with_needed(names) if name in names or not (out / name / "outcome.jsonl").exists()
    ]
    if existing := [name for name in missing if (out / name).exists()]:
        sys.exit(f"error: {out / existing[0]} exists: give another folder, or remove it")
    with tempfile.TemporaryDirectory(prefix="same_training") as packages:
        env = _environment(tree, Path(packages))
        for name in missing:
            start_s = time.perf_counter()
            _run(CASES[name], tree, out, name, env)
            num_steps = _collect(out / name)
            shown = ", ".join(f"{stage} {number}" for stage, number in num_steps.items())
            print(f"{name}: {time.perf_counter() - start_s:.0f} s; steps: {shown}", flush=True)


def _with_needed(names: list[str]) -> list[str]:
    """The names in an order in which each case follows those that it needs."""
    ordered: dict[str, None] = {}
    for name in names:
        ordered |= dict.fromkeys((*_with_needed(CASES[name].needs), name))
    return list(ordered)


def _environment(tree: Path, packages: Path) -> dict[str, str]:
    """Environment variables with which `ralign` is imported from `tree`, whatever is installed."""
    (packages / "ralign").mkdir(parents=True)
    for folder in ("engine", "kernels", "recipes"):
        (packages / "ralign" / folder).symlink_to(tree / folder)
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    code = "import ralign.engine, ralign.kernels._packing as p; print(ralign.engine.__file__, p.__file__, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: ralign of {tree} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    for origin in map(Path, done.stdout.splitlines()):
        if not origin.resolve().is_relative_to(tree):
            sys.exit(f"error: {origin} would be imported, which is not in {tree}: build its extension there")
    return env


def _run(case: Case, tree: Path, out: Path, name: str, env: dict[str, str]) -> None:
    """Trains in OUT/NAME/run."""
    folder = out / name
    folder.mkdir(parents=True)
    settings = case.settings
    for path, replaced in OLD_SETTINGS.items():
        for new, old in replaced.items():
            settings = settings if (tree / path).exists() else settings.replace(new, old)
    settings = settings.format(**{needed: out / needed / "run" for needed in case.needs})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(NUM_PROCESSES), str(tree / "recipes" / f"{case.recipe}.py")]
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(
            [*command, f"out={folder}", "name=run", *settings.split()],
            cwd=folder,
            env=env,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        sys.exit(f"error: {name} ended with exit status {done.returncode}: see {log}")


def _collect(folder: Path) -> dict[str, int]:
    """Writes what `compare` reads beside a run folder; returns each stage's number of steps.

    Stages must end with different weights: a stage without gradients would show nothing.
    """
    num_steps, outcome, seen = {}, {}, {}
    run = folder / "run"
    for metrics in sorted(run.rglob("metrics.jsonl"), key=lambda path: path.stat().st_mtime):
        stage = "-".join(metrics.parent.relative_to(run).parts)
        shutil.copyfile(metrics, folder / f"{stage}.jsonl")
        num_steps[stage] = len(_rows(metrics))
        parts = sorted((metrics.parent / "hf").glob("*.safetensors"))
        checksum = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
        if checksum in seen:
            sys.exit(f"error: {folder.name}: stages {seen[checksum]} and {stage} end with the same weights")
        seen[checksum], outcome[f"weights/{stage}"] = stage, checksum
    summary = json.loads((run / "report" / "summary.json").read_text(encoding="utf-8"))
    outcome |= dict(_flat(summary, "summary"))
    (folder / "outcome.jsonl").write_text(json.dumps(outcome) + "\n", encoding="utf-8")
    return num_steps


def _flat(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects and lists, with names a/b/0/c."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _flat(value, f"{prefix}/{key}")
    else:
        yield prefix, node


@dataclass
class Comparison:
    """Counts, and one line for each difference."""

    num_cases: int = 0
    num_stages: int = 0
    num_steps: int = 0
    num_values: int = 0
    differences: list[str] = field(default_factory=list)


def compare(before: Path, after: Path) -> Comparison:
    """All cases and stages that either record holds."""
    result = Comparison()
    for case in _names(before, "*/") | _names(after, "*/"):
        result.num_cases += 1
        for file in _names(before / case, "*.jsonl") | _names(after / case, "*.jsonl"):
            where = f"{case} {file.removesuffix('.jsonl')}"
            paths = before / case / file, after / case / file
            if absent := [str(path) for path in paths if not path.exists()]:
                result.differences.append(f"{where}: no file {absent[0]}")
                continue
            result.num_stages += file != "outcome.jsonl"
            _compare_rows(where, *map(_rows, paths), result)
    return result


def _compare_rows(where: str, before: list[dict], after: list[dict], result: Comparison) -> None:
    for number, (old, new) in enumerate(zip_longest(before, after), start=1):
        if old is None or new is None:
            result.differences.append(f"{where}: {len(before)} steps before, {len(after)} after")
            return
        old = {key if key in new else RENAMED_METRICS.get(key, key): value for key, value in old.items()}
        result.num_steps += "step" in old
        for key in sorted(key for key in old.keys() | new.keys() if not NOT_COMPARED.fullmatch(key)):
            values = [repr(row[key]) if key in row else "absent" for row in (old, new)]
            result.num_values += 1
            if values[0] != values[1]:
                step = f"step {number} " if "step" in old else ""
                result.differences.append(f"{where} {step}{key}: {values[0]} before, {values[1]} after")


def _names(folder: Path, pattern: str) -> dict[str, None]:
    return dict.fromkeys(path.name for path in sorted(folder.glob(pattern)))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="run the cases")
    recording.add_argument("out", type=Path, metavar="OUT", help="folder of the record")
    tree = Path(__file__).resolve().parents[2]
    recording.add_argument("--tree", type=Path, default=tree, help="checkout to run (default: this one)")
    recording.add_argument("--cases", default=",".join(CASES), help="some of %(default)s")
    comparing = commands.add_parser("compare", help="compare two records")
    comparing.add_argument("before", type=Path, metavar="BEFORE")
    comparing.add_argument("after", type=Path, metavar="AFTER")
    args = parser.parse_args()
    if args.command == "record":
        names = args.cases.split(",")
        if unknown := [name for name in names if name not in CASES]:
            parser.error(f"--cases: no case {unknown[0]!r}; there are {', '.join(CASES)}")
        record(args.out.resolve(), args.tree.resolve(), names)
        return 0
    for folder in (args.before, args.after):
        if not any(folder.glob("*/*.jsonl")):
            parser.error(f"{folder} holds no record")
    found = compare(args.before, args.after)
    print(*found.differences, sep="\n", end="\n" if found.differences else "")
    print(
        f"{len(found.differences)} differences in {found.num_cases} cases, {found.num_stages} stages, "
        f"{found.num_steps} steps, {found.num_values} values"
    )
    return 1 if found.differences else 0


if __name__ == "__main__":
    sys.exit(main())
