"""A checkpoint with foreign contents or damage: neither resume nor export runs it, and both name the file."""

import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.export import export
from ralign.engine.runtime.errors import UserError
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

SHARD, WEIGHT, RNG = "__0_0.distcp", "param/model.norm.weight", "rng/shard_0_1"


class Foreign:
    """Its pickle creates a file when it is read."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


def foreign_pickle(canary: Path) -> bytes:
    return pickle.dumps(Foreign(canary))


def foreign_archive(canary: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"common": {"step": 2, "stage": Foreign(canary), "policy": {}}}, file)
    return file.getvalue()


def change_metadata(path: Path, change: Callable[[Metadata], None]) -> None:
    metadata = pickle.loads((path / ".metadata").read_bytes())
    change(metadata)
    (path / ".metadata").write_bytes(pickle.dumps(metadata))


def place_of(metadata: Metadata, name: str):
    """The place of an entry in the files, to be changed."""
    (found,) = (place for index, place in metadata.storage_data.items() if index.fqn == name)
    return found


def replace_entry(path: Path, name: str, data: bytes) -> None:
    """Append other data to the tensor file, and let the metadata refer to it."""
    offset = (path / SHARD).stat().st_size
    with (path / SHARD).open("ab") as file:
        file.write(data)

    def refer(metadata: Metadata) -> None:
        place_of(metadata, name).offset, place_of(metadata, name).length = offset, len(data)

    change_metadata(path, refer)


def as_bytes(path: Path, canary: Path) -> None:
    """The weights are declared as a value, which torch's own planner unpickles without a limit."""
    replace_entry(path, WEIGHT, foreign_archive(canary))
    change_metadata(
        path, lambda metadata: metadata.state_dict_metadata.update({WEIGHT: BytesStorageMetadata()})
    )


def set_of(name: str, **fields) -> Callable[[Path, Path], None]:
    """Change the place of an entry."""

    def change(path: Path, canary: Path) -> None:
        def set_fields(metadata: Metadata) -> None:
            for field, value in fields.items():
                setattr(place_of(metadata, name), field, value)

        change_metadata(path, set_fields)

    return change


def change_entry(**fields) -> Callable[[Path, Path], None]:
    def change(path: Path, canary: Path) -> None:
        def set_fields(metadata: Metadata) -> None:
            for field, value in fields.items():
                setattr(metadata.state_dict_metadata[WEIGHT], field, value)

        change_metadata(path, set_fields)

    return change


MKDIR = r"refers to posix\.mkdir, which no checkpoint needs"
# How a checkpoint is changed, and what resume and export report; None: it is not read there, or does no harm.
FOREIGN = {
    "metadata": (
        lambda path, canary: (path / ".metadata").write_bytes(foreign_pickle(canary)),
        rf"\.metadata {MKDIR}", rf"\.metadata {MKDIR}",
    ),
    "in the metadata": (
        lambda path, canary: change_metadata(path, lambda m: setattr(m, "planner_data", [Foreign(canary)])),
        rf"\.metadata {MKDIR}", rf"\.metadata {MKDIR}",
    ),
    "another class in the metadata": (
        lambda path, canary: (path / ".metadata").write_bytes(pickle.dumps(torch.nn.Linear)),
        r"\.metadata refers to torch\.nn\.modules\.linear\.Linear", r"\.metadata refers to torch\.nn",
    ),
    "a function of torch in the metadata": (
        lambda path, canary: (path / ".metadata").write_bytes(b"\x80\x04ctorch\nload\n."),
        r"\.metadata refers to torch\.load", r"\.metadata refers to torch\.load",
    ),
    "an attribute of a class in the metadata": (
        lambda path, canary: (path / ".metadata").write_bytes(
            b"\x80\x04\x8c\x05torch\x8c\x0cSize.__new__\x93."
        ),
        r"\.metadata refers to torch\.Size\.__new__", r"\.metadata refers to torch\.Size\.__new__",
    ),
    "common.pt": (
        lambda path, canary: (path / "common.pt").write_bytes(foreign_archive(canary)),
        rf"common\.pt {MKDIR}", None,
    ),
    "common.pt as a pickle": (
        lambda path, canary: (path / "common.pt").write_bytes(foreign_pickle(canary)),
        r"common\.pt is damaged: it holds no plain values", None,
    ),
    "random states": (
        lambda path, canary: replace_entry(path, RNG, foreign_archive(canary)),
        rf"__0_0\.distcp \(rng/shard_0_1\) {MKDIR}", None,
    ),
    "a tensor": (
        lambda path, canary: replace_entry(path, WEIGHT, foreign_archive(canary)),
        rf"__0_0\.distcp {MKDIR}", rf"__0_0\.distcp {MKDIR}",
    ),
    "a tensor as a value": (as_bytes, "rank 0: ", r"\.metadata has no shape of param/model\.norm\.weight"),
    "no pickle": (
        lambda path, canary: (path / ".metadata").write_bytes(b"\x80\x04garbage"),
        r"\.metadata is damaged", r"\.metadata is damaged",
    ),
    "plain data": (
        lambda path, canary: (path / ".metadata").write_bytes(pickle.dumps({"a": 1})),
        r"\.metadata is damaged \(it holds dict\)", r"\.metadata is damaged",
    ),
    "an empty object": (
        lambda path, canary: (path / ".metadata").write_bytes(pickle.dumps(Metadata.__new__(Metadata))),
        r"\.metadata is damaged", r"\.metadata is damaged",
    ),
    "a file above": (
        set_of(WEIGHT, relative_path="../../../model/config.json"),
        "no file of this checkpoint", "no file of this checkpoint",
    ),
    "an absolute file": (
        set_of(RNG, relative_path="/dev/zero"), "'/dev/zero', which is no file", "'/dev/zero', which is no file",
    ),
    "bytes beyond the end": (set_of(WEIGHT, length=10**9), "beyond the end of", "beyond the end of"),
    "bytes before the begin": (set_of(WEIGHT, offset=-5), "beyond the end of", "beyond the end of"),
    "a transformation": (set_of(WEIGHT, transform_descriptors=["stream.zstd"]), "transformation", "transformation"),
    "a huge tensor": (change_entry(size=torch.Size([10**15])), "every part of", "every part of"),
    "a part is missing": (change_entry(chunks=[]), "every part of param/model.norm", "every part of param/model.norm"),
    "common.pt of another form": (
        lambda path, canary: torch.save([1], path / "common.pt"), "has no state of a stage", None,
    ),
    "another model's": (
        lambda path, canary: torch.save({"common": {"step": 2, "stage": {}, "critic": {}}}, path / "common.pt"),
        r"common\.pt has no state of the policy", None,
    ),
    "Megatron's settings": (
        lambda path, canary: (path / "metadata.json").write_text("[5"), "cannot be loaded", None,
    ),
}  # fmt: skip


def sign(path: Path) -> None:
    """Sizes and checksums in the manifest as they are now: whoever can change the files can change these, too."""
    manifest = replace(folders.read_manifest(path), files=folders.files_of(path))
    (path / folders.MANIFEST).write_text(json.dumps(asdict(manifest)))


def flip(file: Path, place: float) -> None:
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    file.write_bytes(data)


def damages(path: Path) -> dict[str, tuple[str, Callable[[Path], None]]]:
    """By a name: the file, and what is done to a checkpoint's folder."""
    found = {}
    for name in sorted(file.name for file in path.iterdir()):
        for place in (0.0, 0.3, 0.5, 1.0):
            found[f"flip {name} {place}"] = name, lambda p, name=name, place=place: flip(p / name, place)
        found[f"cut {name}"] = (
            name,
            lambda p, name=name: os.truncate(p / name, (p / name).stat().st_size // 2),
        )
        found[f"empty {name}"] = name, lambda p, name=name: os.truncate(p / name, 0)
        found[f"no {name}"] = name, lambda p, name=name: (p / name).unlink()
    return found


@pytest.fixture(scope="module")
def resumed(made, tiny_program, tmp_path_factory) -> dict[str, dict]:
    """What resumes from changed copies of the run's checkpoints report, by the name of the change; all in one job."""
    base = tmp_path_factory.mktemp("resumed")
    cases: dict[str, Path] = {}

    def copy(name: str) -> Path:
        cases[name] = base / str(len(cases))
        shutil.copytree(made / "stage" / "checkpoints", cases[name])
        return folders.complete(cases[name])[-1]

    copy("whole")
    for name, (change, *_) in FOREIGN.items():
        path = copy(name)
        change(path, base / "canary")
        sign(path)
    for name, (_, change) in damages(folders.complete(made / "stage" / "checkpoints")[-1]).items():
        change(copy(name))
    lines = tiny_program("resume", *map(str, cases.values())).splitlines()
    assert not (base / "canary").exists()
    return {name: json.loads(line) for name, line in zip(cases, lines, strict=True)}


def test_a_whole_checkpoint_is_resumed(resumed):
    assert resumed["whole"] == {"num_steps_done": 2}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_resume_runs_nothing_and_names_the_file(resumed, name):
    error = resumed[name]["error"]
    assert "\n" not in error and "step00000002 cannot be loaded: " in error
    assert "nothing was changed (move it away to resume from step00000001)" in error
    with pytest.raises(UserError, match=FOREIGN[name][1]):
        raise UserError(error)


@pytest.mark.parametrize("name", FOREIGN)
def test_an_export_runs_nothing_and_names_the_file(newest, tmp_path, name, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    change, _, message = FOREIGN[name]
    change(newest, tmp_path / "canary")
    sign(newest)
    if message is None:  # a file that an export does not need
        assert export(newest, tmp_path / "out")[0] == 2
    else:
        with pytest.raises(UserError, match=message) as found:
            export(newest, tmp_path / "out")
        assert "\n" not in str(found.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]  # nothing is left of it
    assert not (tmp_path / "canary").exists()


def test_every_damage_is_found_by_a_resume(resumed, made):
    for name, (file, _) in damages(folders.complete(made / "stage" / "checkpoints")[-1]).items():
        assert file in resumed[name].get("error", ""), (name, resumed[name])
        assert "move it away to resume from step00000001" in resumed[name]["error"]


def test_every_damage_is_found_by_an_export(newest, tmp_path):
    path = newest
    shutil.copytree(path, tmp_path / "whole")
    for name, (file, change) in damages(path).items():
        change(path)
        with pytest.raises(UserError, match=file.replace(".", r"\.")):
            export(path, tmp_path / "out")
        assert not (tmp_path / "out").exists(), name
        shutil.rmtree(path)
        shutil.copytree(tmp_path / "whole", path)
    assert export(path, tmp_path / "out")[0] == 2
