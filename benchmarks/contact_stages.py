"""The stages of first_contact.py: what each starts, what it needs, how long it may take, and what its result says."""

import importlib.util
import json
import math
import sys
import xml.etree.ElementTree as xml
from pathlib import Path

from source_tree import ROOT
from stage_runner import Row, Stage, missing

BENCHMARKS = ROOT / "benchmarks"
ENGINE = ("torch", "transformers", "megatron.core", "vllm", "ralign.kernels._packing")
MEAN_DIFFERENCE = 0.015  # of a logprob, engine against trainer in bf16
LEAST_KERNEL_TESTS = 150  # a run that left them out has not passed


def torchrun(program: Path, *args: str) -> list[str]:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    return [sys.executable, *launch, str(program), *args]


def python(program: Path, *args: str) -> list[str]:
    return [sys.executable, str(program), *args]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def read_gpu_check(folder: Path) -> list[Row]:
    checks = read_json(folder / "result.json")["checks"]
    wrong = [check["name"] for check in checks if not check["right"]]
    return [
        Row(name="results against float64", value=len(checks), at_least=1),
        Row(name="wrong results", value=len(wrong), at_most=0, note=", ".join(wrong)),
    ]


def pytest_kernels(folder: Path) -> list[str]:
    """The kernels' tests on the device; attention's, too, where what it imports is installed."""
    paths = [str(ROOT / "tests" / "kernels")]
    if importlib.util.find_spec("transformers") is None:
        paths.append(f"--ignore={ROOT / 'tests' / 'kernels' / 'test_rms_norm.py'}")
    if not missing(ENGINE):
        paths.append(str(ROOT / "tests" / "engine" / "policy"))
    options = [
        "-m",
        "gpu",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        f"--junit-xml={folder / 'tests.xml'}",
    ]
    return [sys.executable, "-m", "pytest", *options, *paths]


def read_kernels(folder: Path) -> list[Row]:
    suites = xml.parse(folder / "tests.xml").getroot().findall("testsuite")
    found = {
        name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")
    }
    failed = found["failures"] + found["errors"]
    return [
        Row(
            name="tests passed", value=found["tests"] - failed - found["skipped"], at_least=LEAST_KERNEL_TESTS
        ),
        Row(name="tests failed", value=failed, at_most=0, note="names in the log" if failed else ""),
        Row(name="tests skipped", value=found["skipped"]),
    ]


def read_roofline(folder: Path) -> list[Row]:
    report = read_json(folder / "result.json")
    rows = [
        Row(name="copy, read and written", value=report["copy_bytes_per_s"] / 1e12, unit="TB/s"),
        Row(name="bf16 product", value=report["matmul_flops_per_s"] / 1e12, unit="TFLOP/s"),
    ]
    for row in report["times"]:
        moved, share = row["bytes_per_s"] / 1e12, row["share_of_ceiling"]
        rate = f"{moved:.2f} TB/s" if moved else f"{row['flops_per_s'] / 1e12:.0f} TFLOP/s"
        name = f"{row['case']}, {row['shape']}"
        rows.append(
            Row(
                name=name,
                value=row["ms"],
                unit="ms",
                at_most=row["target_ms"],
                note=f"{rate}, {share:.0%} of roof",
            )
        )
        if row["target_share"] is not None:
            rows.append(Row(name=f"{name}: share of roof", value=share, at_least=row["target_share"]))
    memory_gb = report["linear_policy_loss_extra_memory_gb"]
    return [*rows, Row(name="linear_policy_loss, extra memory", value=memory_gb, unit="GB", at_most=0.6)]


def read_shared_weights(folder: Path) -> list[Row]:
    report = read_json(folder / "result.json")
    mean, largest = (max(map(max, report[f"{name}_differences"])) for name in ("mean", "max"))
    facts = {
        "engine reads the trainer's own memory": report["same_storage"],
        "same tokens from the same seed": report["repeatable"],
        "a changed bit is detected": report["detects_tampering"],
    }
    return [
        Row(name="mean |dlogprob|, worst of 6 versions", value=mean, at_most=MEAN_DIFFERENCE),
        Row(name="largest |dlogprob|", value=largest),
        *(Row(name=name, value=float(fact), at_least=1) for name, fact in facts.items()),
    ]


def read_mini(folder: Path) -> list[Row]:
    lines = (folder / "mini" / "r_align" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    last = steps[-1]
    finite = all(math.isfinite(step["policy/grad_norm"]) for step in steps)
    return [
        Row(name="R-Align steps", value=len(steps), at_least=3),
        Row(name="finite gradients", value=float(finite), at_least=1),
        Row(name="KL of engine and trainer, third step", value=last["policy/rollout_kl"]),
        *(
            Row(name=f"third step, {stage}", value=last[f"time_s/{stage}"], unit="s")
            for stage in ("generate", "forward_backward", "total")
        ),
    ]


def read_one_step(folder: Path) -> list[Row]:
    """The ledger beside the driver's count (all that the device holds), and what is held by its storages."""
    result = read_json(folder / "result.json")
    metrics, reserve = result["metrics"], result["run"]["memory"]["reserve_gib"]
    end = "_held_predicted_gib"
    phases = [name[len("memory/") : -len(end)] for name in metrics if name.endswith(end)]
    rows = []
    for phase in phases:
        predicted, used, held_predicted, held = (
            metrics[f"memory/{phase}_{what}_gib"] for what in ("predicted", "used", "held_predicted", "held")
        )
        beyond = used - (predicted - reserve)
        rows += [
            Row(
                name=f"memory, {phase}: used over predicted", value=used / predicted, at_least=0.9, at_most=1.1,
                note=f"{used:.1f} of {predicted:.1f} GiB",
            ),
            Row(name=f"memory, {phase}: taken of the reserve", value=beyond, unit="GiB", at_most=reserve),
            Row(
                name=f"memory, {phase}: held over predicted", value=held / held_predicted, at_least=0.95, at_most=1.05,
                note=f"{held:.1f} of {held_predicted:.1f} GiB",
            ),
        ]  # fmt: skip
    rows.append(Row(name="KL of engine and trainer", value=metrics["policy/rollout_kl"]))
    times = [(name, value) for name, value in metrics.items() if name.startswith("time_s/")]
    return rows + [Row(name=f"second step, {name[7:]}", value=value, unit="s") for name, value in times]


STAGES = [
    Stage(
        name="gpu_check",
        title="every kernel's results against float64",
        limit_s=120,
        needs=("torch", "triton"),
        command=lambda folder: python(
            BENCHMARKS / "gpu_check.py", "--checks-only", "--out", str(folder / "result.json")
        ),
        read=read_gpu_check,
        exit_statuses=(0, 1),  # 1: a result is wrong
    ),
    Stage(
        name="kernels",
        title="pytest -m gpu",
        limit_s=240,
        needs=("torch", "triton", "pytest", "hypothesis"),
        command=pytest_kernels,
        read=read_kernels,
        exit_statuses=(0, 1),  # 1: a test failed
    ),
    Stage(
        name="roofline",
        title="achieved bytes/s and FLOP/s of each kernel",
        limit_s=150,
        needs=("torch", "triton"),
        command=lambda folder: python(BENCHMARKS / "roofline.py", "--out", str(folder / "result.json")),
        read=read_roofline,
    ),
    Stage(
        name="shared_weights",
        title="vLLM on Megatron's memory in bf16, five updates",
        limit_s=180,
        needs=ENGINE,
        command=lambda folder: torchrun(
            ROOT / "tests" / "programs" / "shared_weights.py", str(folder / "result.json"), "1", "1", "0", "bf16"
        ),
        read=read_shared_weights,
    ),
    Stage(
        name="mini",
        title="recipes/r_align_mini.py, 3 steps",
        limit_s=180,
        needs=(*ENGINE, "tyro", "matplotlib"),
        command=lambda folder: torchrun(
            ROOT / "recipes" / "r_align_mini.py", f"out={folder}", "name=mini", "resume=never", "num_steps=3",
            "sft.num_steps=3", "sft.competence=0", "arms=rlvr,r_align", "eval.num_pairs=32",
        ),
        read=read_mini,
    ),
    Stage(
        name="one_step",
        title="a model with an 8B's layers: the memory ledger against the driver",
        limit_s=300,
        needs=(*ENGINE, "tyro"),
        command=lambda folder: torchrun(BENCHMARKS / "one_step.py", str(folder / "result.json")),
        read=read_one_step,
    ),
]  # fmt: skip
