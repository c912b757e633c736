"""The folder of a stage's checkpoints: publishing, verifying and removing them. No torch here.

    checkpoints/step00000040/            complete: renamed when its last byte was on the disk
    checkpoints/.draft-step00000060/     being written; the next start removes it
    checkpoints/.removed-step00000020/   being removed; likewise

A folder is renamed atomically, so a kill at any instant does not damage a complete checkpoint. `manifest.json` lists
every file with its size and checksum, and has one of its own, so a missing, truncated or altered file is found before
anything is loaded. Checksums find damage, not intent: whoever may write to the folder can correct them.
"""

import json
import math
import os
import re
import shutil
import threading
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

from ralign.engine.runtime.errors import UserError

MANIFEST = "manifest.json"
_NEEDED = (".metadata", "common.pt", "metadata.json")  # beside the files with tensors
_ROOM_BYTES = 1 << 20
_COMPLETE, _DRAFT, _REMOVED = "step", ".draft-", ".removed-"


@dataclass(kw_only=True, frozen=True)
class Manifest:
    """The contents of a checkpoint.

    Attributes:
        step: number of steps done.
        score: value of the watched metric, higher is better; None without a watched metric.
        layout: parallel sizes of the run that wrote it.
        files: name -> (bytes, CRC-32), for each file but the manifest.
    """

    step: int
    score: float | None
    layout: dict[str, int]
    files: dict[str, tuple[int, int]]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {name: num_bytes for name, (num_bytes, _) in self.files.items()}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"{_COMPLETE}{step:08d}"


def step_of(path: Path) -> int:
    """The step of a complete checkpoint."""
    return int(path.name.removeprefix(_COMPLETE))


def draft_of(folder: Path, step: int) -> Path:
    return folder / f"{_DRAFT}{_COMPLETE}{step:08d}"


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(_COMPLETE + r"\d{8,}", p.name) and p.is_dir())


def remove_stale(folder: Path) -> None:
    """Remove the leftovers of an interrupted save or removal; creates the folder if there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name.startswith((_DRAFT, _REMOVED)):
            shutil.rmtree(path)


def begin(draft: Path) -> None:
    """Create the folder of a save, and check that there is room for the files that only rank 0 writes.

    Rank 0 writes Megatron's small files between collectives, so an error there would block the other ranks.

    Raises:
        OSError: for example a full disk.
    """
    draft.mkdir()
    room = draft / "room"
    with room.open("wb") as file:
        file.write(bytes(_ROOM_BYTES))
        file.flush()
        os.fsync(file.fileno())
    room.unlink()


def publish(draft: Path, manifest: Manifest) -> None:
    """Make a draft, with all its files written, a complete checkpoint."""
    for name in manifest.files:
        _sync(draft / name)
    fields = asdict(manifest) | {"checksum": _checksum(manifest)}
    _write_durably(draft / MANIFEST, json.dumps(fields, indent=1) + "\n")
    _sync(draft)
    os.replace(draft, path_of(draft.parent, manifest.step))
    _sync(draft.parent)


def remove(path: Path) -> threading.Thread:
    """Remove a complete checkpoint. It is renamed on return; the returned thread deletes its files.

    A partial checkpoint never has the name of a complete one, and `remove_stale` removes it after a kill.
    """
    away = path.with_name(_REMOVED + path.name)
    os.replace(path, away)
    thread = threading.Thread(target=shutil.rmtree, args=(away,), name=f"removes {path.name}")
    thread.start()
    return thread


def expired(folder: Path, *, keep_last: int, keep_best: int) -> list[Path]:
    """Complete checkpoints that are neither among the newest `keep_last` nor among the best `keep_best`.

    Among equal scores the latest is the best. A checkpoint without a finite score is never among the best. One whose
    manifest is damaged is not removed: its score is not known.
    """
    paths = complete(folder)
    scores: list[tuple[float, Path]] = []
    unknown: list[Path] = []
    for path in paths:
        try:
            score = read_manifest(path).score
        except UserError:
            unknown.append(path)
            continue
        if score is not None and math.isfinite(score):
            scores.append((score, path))
    best = [path for _, path in sorted(scores)]
    kept = {*paths[-keep_last:], *(best[-keep_best:] if keep_best else []), *unknown}
    return [path for path in paths if path not in kept]


def files_of(path: Path, known: dict[str, int] | None = None) -> dict[str, tuple[int, int]]:
    """Name -> (bytes, CRC-32) of every file in a folder. Checksums in `known` are not computed again."""
    return {
        file.name: (file.stat().st_size, (known or {}).get(file.name) or crc32_of(file))
        for file in sorted(path.iterdir())
        if file.name != MANIFEST
    }


def crc32_of(file: Path, chunk_size: int = 1 << 22) -> int:
    checksum = 0
    with file.open("rb") as stream:
        while chunk := stream.read(chunk_size):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def read_manifest(path: Path) -> Manifest:
    """The manifest of a checkpoint; UserError if it is missing or invalid."""
    file = path / MANIFEST
    try:
        return _parse(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(_unreadable(path, f"{MANIFEST}: {error.strerror}")) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(_unreadable(path, f"{MANIFEST} is not a manifest ({error})")) from error


def _parse(text: str) -> Manifest:
    """Raises ValueError or TypeError, with the reason, for anything but the text of a manifest."""
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it is not an object")
    checksum = fields.pop("checksum", None)  # manifests of earlier versions have none
    manifest = Manifest(**fields)
    if not _is_count(manifest.step):
        raise ValueError(f"step is {manifest.step!r}")
    if manifest.score is not None and type(manifest.score) not in (int, float):
        raise ValueError(f"score is {manifest.score!r}")
    if not isinstance(manifest.layout, dict) or not all(map(_is_count, manifest.layout.values())):
        raise ValueError(f"layout is {manifest.layout!r}")
    if not isinstance(manifest.files, dict) or not manifest.files:
        raise ValueError(f"files is {manifest.files!r}")
    for name, entry in manifest.files.items():
        if Path(name).name != name or "\0" in name or name in ("", ".", "..", MANIFEST):
            raise ValueError(f"{name!r} is no name of a file in the folder")
        if not isinstance(entry, list) or len(entry) != 2 or not all(map(_is_count, entry)):
            raise ValueError(f"{name} has {entry!r} in place of bytes and checksum")
    if checksum is not None and checksum != _checksum(manifest):
        raise ValueError("its checksum does not match")
    return manifest


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _checksum(manifest: Manifest) -> int:
    """The CRC-32 of a manifest's fields, in any order and spacing."""
    return zlib.crc32(json.dumps(asdict(manifest), sort_keys=True).encode())


def check(path: Path) -> Manifest:
    """The manifest of a checkpoint. UserError unless all files exist with their full length."""
    manifest = read_manifest(path)
    if missing := [name for name in _NEEDED if name not in manifest.files]:
        raise UserError(_unreadable(path, f"{MANIFEST} does not list {missing[0]}"))
    for name, (num_bytes, _) in manifest.files.items():
        if not (path / name).is_file():
            raise UserError(_unreadable(path, f"{name} is missing"))
        found = (path / name).stat().st_size
        if found != num_bytes:
            raise UserError(_unreadable(path, f"{name} has {found} bytes instead of {num_bytes}"))
    return manifest


def find_fault(path: Path, manifest: Manifest, *, rank: int, world_size: int) -> str | None:
    """What is wrong with the contents of the files in this rank's share, by their checksums; None if nothing is."""
    for name in sorted(manifest.files)[rank::world_size]:
        try:
            checksum = crc32_of(path / name)
        except OSError as error:
            return f"{name}: {error.strerror}"
        if checksum != manifest.files[name][1]:
            return f"the checksum of {name} does not match"
    return None


def _unreadable(path: Path, reason: str) -> str:
    others = [other for other in complete(path.parent) if other != path]
    purpose = f"to resume from {others[-1].name}" if others else "to start over"
    return f"checkpoint {path} cannot be loaded: {reason}; nothing was changed (move it away {purpose})"


def unreadable(path: Path, reason: str) -> UserError:
    """The error for a checkpoint that could not be loaded."""
    return UserError(_unreadable(path, reason))


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
