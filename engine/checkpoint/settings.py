"""Decides from config.json, before any model is built, whether a run resumes the one in its folder."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.inputs import changed_inputs, record_inputs
from ralign.engine.config.renamed import new_names
from ralign.engine.config.run import Run, save_config
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import write_text

FINISHED = "finished.json"
# Settings that do not change training beyond rounding: a run may resume with other values of these.
_FREE = (
    "name", "out", "resume", "checkpoint_every", "rollouts_every", "checkpoint.", "report.", "faults.", "memory.",
    "parallel.", "generator.tensor", "generator.gpu_memory_utilization", "generator.kv_cache_gib",
    "generator.enforce_eager", "generator.verify", *(f"{group}.{name}" for group in ("metarm", "genrm") for name in (
        "base_url", "api_key_env", "concurrency", "timeout_s", "num_retries", "max_backoff_s", "budget_", "price_",
        "cache", "server.", "max_failed_share",
    )),
)  # fmt: skip

_WAYS_OUT = "restore the file, give another name=, or resume=never to start over there"


def open_folder(run: Run) -> str | None:
    """Prepare `run.folder` for a start or a resume; call it on one rank. Returns a message for the user, or None.

    A run with the same settings and inputs is resumed, interrupted or finished (then nothing is left to train). A
    finished run with others is renamed to NAME.1, NAME.2, ...

    Raises:
        UserError: the folder has an interrupted run with other settings or inputs.
    """
    is_finished = (run.folder / FINISHED).exists()
    message = None
    if has_progress(run.folder):
        changed = [] if run.resume == "never" else _changed(run, is_finished)
        inputs = changed_inputs(run) if run.resume == "auto" else []
        if run.resume == "never":
            _clear(run.folder)
            message = f"{run.folder}: starts over"
        elif (changed or inputs) and is_finished:
            kept = move_aside(run.folder)
            what = "settings" if changed else "inputs"
            message = f"{run.folder}: starts over; the finished run with other {what} is now {kept}"
        elif changed:
            raise UserError(
                f"{run.folder} holds an interrupted run with other settings: {'; '.join(changed[:3])}. Give "
                "these settings to resume it, another name= to keep it, or resume=never to start over there"
            )
        elif inputs:
            raise UserError(
                f"{run.folder} holds an interrupted run with other inputs: {'; '.join(inputs)}. Restore them, or give "
                "resume=accept to go on with the new ones, another name=, or resume=never to start over there"
            )
        elif is_finished:
            message = (
                f"{run.folder} is complete with these settings: nothing to train (resume=never starts over)"
            )
        else:
            message = f"{run.folder}: resumes the interrupted run"
    (run.folder / FINISHED).unlink(missing_ok=True)
    save_config(run, run.folder / "config.json")
    record_inputs(run)
    return message


def mark_finished(run: Run) -> None:
    """Mark the run as finished, after its last stage and its report; call it on one rank."""
    write_text(run.folder / FINISHED, json.dumps({"num_steps": run.num_steps}) + "\n")


def _clear(folder: Path) -> None:
    """Remove all checkpoints. Each folder is renamed first, so a kill leaves no partial checkpoint under its name."""
    for checkpoints in folder.glob("*/checkpoints"):
        away = checkpoints.with_name(".removed-checkpoints")
        shutil.rmtree(away, ignore_errors=True)
        checkpoints.rename(away)
        shutil.rmtree(away)


def has_progress(folder: Path) -> bool:
    """Whether a stage of the run in this folder has a complete checkpoint."""
    return any(folders.complete(path) for path in folder.glob("*/checkpoints"))


def move_aside(folder: Path) -> Path:
    """Renames a run's folder to NAME.1, NAME.2, ..., and returns the new path."""
    number = 1
    while (kept := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return folder.rename(kept)


def _changed(run: Run, is_finished: bool) -> list[str]:
    """`optim.lr was 1e-06, now 2e-06` for each setting that differs and is not in `_FREE`.

    Raises:
        UserError: the folder has an interrupted run of an earlier version, or its settings cannot be read.
    """
    path = run.folder / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"cannot read the interrupted run's settings in {path}: {error}; {_WAYS_OUT}"
        ) from error
    if not isinstance(tree, dict) or "seed" not in tree:
        raise UserError(f"cannot read the interrupted run's settings in {path}: it has none; {_WAYS_OUT}")
    saved = dict(_leaves(tree))
    now = dict(_leaves(json.loads(json.dumps(asdict(run)))))
    old = [name for name in saved if name not in now and new_names(name)]
    if old and not is_finished:
        raise UserError(
            f"{run.folder} holds an interrupted run of an earlier version ({old[0]}), whose checkpoints this version "
            "cannot read: give another name=, or resume=never to start over there"
        )
    return [f"{name} was renamed" for name in old] + [
        f"{name} was {saved[name]}, now {value}"
        for name, value in now.items()
        if name in saved and saved[name] != value and not name.startswith(_FREE)
    ]


def _leaves(tree: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
