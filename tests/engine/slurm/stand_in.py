"""Stands for a recipe where the batch script is under test: steps, a checkpoint after each, a stop when asked.

Settings: `name`, `resume`, `seed`; `steps` of `step_s` seconds each. With "@0+2" behind the value (or always) the
others hold in those starts of the job:

    wait=1      after a step, until asked to stop         status=S    at the end; with of=RANK that rank alone
    hang=STEP   in this step                              deaf=1      signals are not caught
"""

import hashlib
import os
import signal
import sys
import time
from pathlib import Path

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURMD_NODENAME")
LONG_S = 90

settings = dict(word.removeprefix("--").split("=") for word in sys.argv[1:])
rank, start = os.environ["RANK"], os.environ.get("SLURM_RESTART_COUNT", "0")


def now(name: str) -> str | None:
    value, _, starts = settings.get(name, "").partition("@")
    return value if value and (not starts or start in starts.split("+")) else None


asked = []
if not now("deaf"):
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.append(1))
print("start", start, *(os.environ[name] for name in NAMES), *sys.argv[1:], flush=True)
print("cpus", os.environ.get("SRUN_CPUS_PER_TASK"), flush=True)

checkpoint = Path(f"{settings.get('name', 'run')}_rank{rank}.txt")
step, digest = 0, ""
if checkpoint.exists() and settings.get("resume") != "never":
    saved, digest = checkpoint.read_text().split()
    step = int(saved)
    print("goes on after step", step, flush=True)
while step < int(settings.get("steps", 1)):
    step += 1
    time.sleep(LONG_S if now("hang") == str(step) else float(settings.get("step_s", 0)))
    digest = hashlib.sha256(f"{digest} {rank} {step}".encode()).hexdigest()
    draft = checkpoint.with_suffix(".draft")
    draft.write_text(f"{step} {digest}")
    os.replace(draft, checkpoint)
    while now("wait") and not asked:
        time.sleep(0.02)
    if asked:
        print("saved", step, flush=True)
        sys.exit(0)
if now("status"):
    if settings.get("of", rank) == rank:
        sys.exit(int(now("status")))
    time.sleep(LONG_S)
print("done", digest, flush=True)
