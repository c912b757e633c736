"""Fingerprints of the files that a run reads: a resume goes on with the inputs that the run began with."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from ralign.engine.config.run import Run
from ralign.engine.data.metarm_prompts import TEMPLATES as METARM_TEMPLATES
from ralign.engine.data.prompts import TEMPLATES
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import write_text

FILE = "inputs.json"
# Settings that name a file or a Hugging Face folder, where they are there.
_FILES = ("data.train", "data.template", "genrm.template", "metarm.template")
_FOLDERS = ("model.hf_path", "critic.hf_path", "genrm.model", "metarm.model")
_BUILT_IN = {"data.template": TEMPLATES, "genrm.template": TEMPLATES, "metarm.template": METARM_TEMPLATES}
# Of a model's folder: files that are read whole. Of a weight file the start counts, which has the tensors' table.
_TEXT_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_NUM_START_BYTES = 1 << 20


def fingerprints(run: Run) -> dict[str, str]:
    """Setting -> a hash of the content that it names; only settings whose file or folder exists.

    A folder's hash is of its configuration and tokenizer files, and of the names, sizes and first MiB of its weights.
    """
    found = {}
    tree = asdict(run)
    for setting in _FILES + _FOLDERS:
        group, _, name = setting.partition(".")
        value = tree.get(group, {}).get(name)
        if value is None:
            continue
        if value in (built_in := _BUILT_IN.get(setting, {})):
            found[setting] = _digest(built_in[value].encode())
        elif setting in _FILES and Path(value).is_file():
            found[setting] = _file_digest(Path(value))
        elif setting in _FOLDERS and Path(value).is_dir():
            found[setting] = _folder_digest(Path(value))
    return found


def changed_inputs(run: Run) -> list[str]:
    """`data.train=pairs.jsonl has other content` for each input that differs from the folder's record.

    Raises:
        UserError: the record cannot be read.
    """
    path = run.folder / FILE
    if not path.exists():  # a run of an earlier version
        return []
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}; resume=accept goes on without it") from error
    now, tree, changed = fingerprints(run), asdict(run), []
    for setting, digest in before.items():
        group, _, name = setting.partition(".")
        if setting not in now:
            changed.append(f"{setting}={tree.get(group, {}).get(name)} is missing")
        elif now[setting] != digest:
            changed.append(f"{setting}={tree[group][name]} has other content")
    return changed


def record_inputs(run: Run) -> None:
    """Write the fingerprints into the run's folder."""
    write_text(run.folder / FILE, json.dumps(fingerprints(run), indent=2) + "\n")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def _folder_digest(folder: Path) -> str:
    parts = []
    for path in sorted(folder.iterdir()):
        if path.suffix in _TEXT_SUFFIXES:
            parts.append((path.name, _file_digest(path)))
        elif path.suffix == ".safetensors":
            with path.open("rb") as file:
                parts.append((path.name, path.stat().st_size, _digest(file.read(_NUM_START_BYTES))))
    return _digest(json.dumps(parts).encode())
