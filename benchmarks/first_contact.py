"""First contact with a GPU: what is owed by one H100 or H200, in at most ten minutes, what teaches most first.

    python benchmarks/first_contact.py [--out FOLDER] [--minutes 10] [--stages NAME,NAME] [--again] [--list]

Needs torch and a CUDA device. The kernels' stages need triton and pytest, and nothing of this project installed; the
others the whole set-up (`make gpu` does it), and say what they lack. Each stage is a program with a time limit and a
log of its own. What is done is kept in FOLDER/first_contact.json: the same command goes on where it stopped.

Exit status: 0 if every limit is met, 1 if one is missed or a stage is not done, 2 without a CUDA device.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from contact_stages import STAGES
from source_tree import ROOT, make_importable
from stage_runner import Record, Stage, run_all, table

# In a process of its own: one that has asked for the device's name holds memory on it.
PROBE = """
import importlib.metadata as metadata, json, platform, torch
found = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
for name in ("triton", "vllm"):
    try:
        found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
usable, count = torch.cuda.is_available(), torch.cuda.device_count()
found["device"] = torch.cuda.get_device_name() if usable else ""
print(json.dumps([found, count]))
"""


def this_machine() -> tuple[dict[str, str], str]:
    """(what a result holds for, why this machine has no GPU for torch or nothing)."""
    if importlib.util.find_spec("torch") is None:
        return {}, "torch is not installed"
    done = subprocess.run([sys.executable, "-c", PROBE], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {}, "torch does not import (above)"
    machine, num_gpus = json.loads(done.stdout.splitlines()[-1])
    if machine["device"]:
        return machine, ""
    if num_gpus:
        versions = f"torch {machine['torch']} for CUDA {machine['cuda']}"
        return machine, f"{num_gpus} GPU(s) that {versions} cannot use: CUDA 13 wants driver 580 or newer"
    return machine, "none found"


def chosen(names: str | None) -> list[Stage]:
    """The stages of these names, in their own order; all for None."""
    if names is None:
        return STAGES
    known = [stage.name for stage in STAGES]
    if unknown := [name for name in names.split(",") if name not in known]:
        print(f"--stages {','.join(unknown)}: stages are {', '.join(known)}", file=sys.stderr)
        sys.exit(2)
    return [stage for stage in STAGES if stage.name in names.split(",")]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "first_contact", help="folder of all results"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="no stage begins later")
    parser.add_argument("--stages", default=None, help="names with commas between; default: all")
    parser.add_argument("--again", action="store_true", help="do these stages anew, even if they are done")
    parser.add_argument("--list", action="store_true", help="the stages and what they need")
    args = parser.parse_args(argv)
    stages = chosen(args.stages)
    if args.list:
        for stage in stages:
            print(
                f"{stage.name:<16}{stage.title}; at most {stage.limit_s:g} s; needs {', '.join(stage.needs)}"
            )
        return 0
    machine, problem = this_machine()
    if problem:
        print(f"first_contact.py needs a CUDA device: {problem}", file=sys.stderr)
        return 2
    make_importable()
    folder = args.out.resolve()
    record = Record(folder / "first_contact.json", machine)
    if record.set_aside:
        print(f"{record.set_aside} has what was found on another machine or with other versions")
    if args.again:
        record.forget(stages)
    run_all(stages, record, folder, minutes=args.minutes)
    print(
        f"\n{', '.join(f'{name} {value}' for name, value in record.machine.items())}\n{table(record, stages)}"
    )
    print(f"\nJSON: {record.path}; logs: {folder}/STAGE/log")
    return 0 if all(record.is_good(stage.name) for stage in stages) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
