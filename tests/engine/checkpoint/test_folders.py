"""The checkpoints' folder: atomic names, what is kept, what is swept away."""

import json
import os
import shutil

import pytest
from ralign.engine.checkpoint import folders
from ralign.engine.runtime.errors import UserError


def make(folder, step, score=None):
    draft = folders.draft_of(folder, step)
    draft.mkdir(parents=True)
    (draft / "shard").write_bytes(b"x" * (100 + step))
    for name in (".metadata", "common.pt", "metadata.json"):
        (draft / name).write_bytes(name.encode())
    folders.publish(
        draft, folders.Manifest(step=step, score=score, layout={"tensor": 1}, files=folders.files_of(draft))
    )
    return folders.path_of(folder, step)


def steps_of(paths):
    return [int(path.name.removeprefix("step")) for path in paths]


def test_only_published_drafts_are_complete(tmp_path):
    folders.draft_of(tmp_path, 3).mkdir()
    path = make(tmp_path, 2)
    assert folders.complete(tmp_path) == [path]
    assert folders.check(path).step == 2
    assert folders.find_fault(path, folders.check(path), rank=0, world_size=1) is None


def test_a_kill_before_a_rename_leaves_whole_checkpoints(tmp_path, monkeypatch):
    make(tmp_path, 1)

    def dies(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, 2)
    with pytest.raises(KeyboardInterrupt):
        folders.remove(folders.path_of(tmp_path, 1))
    assert steps_of(folders.complete(tmp_path)) == [1]
    folders.check(folders.path_of(tmp_path, 1))
    folders.remove_stale(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step00000001"]


def test_a_kill_in_the_middle_of_a_removal_leaves_nothing_under_the_name(tmp_path, monkeypatch):
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda path: (path / "shard").unlink())  # that far, and no further
    folders.remove(first).join()
    monkeypatch.undo()
    assert folders.complete(tmp_path) == [second]
    assert len(list(tmp_path.iterdir())) == 2
    folders.remove_stale(tmp_path)
    assert list(tmp_path.iterdir()) == [second]


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "gone"),
    [(1, 0, [1, 2, 3, 4]), (2, 0, [1, 2, 3]), (2, 1, [1, 3]), (1, 2, [1, 4]), (9, 0, []), (1, 9, [1])],
)
def test_the_newest_and_the_best_are_kept(tmp_path, keep_last, keep_best, gone):
    for step, score in ((1, None), (2, 0.5), (3, 0.4), (4, 0.3), (5, 0.1)):
        make(tmp_path, step, score)
    assert steps_of(folders.expired(tmp_path, keep_last=keep_last, keep_best=keep_best)) == gone


def test_of_equal_scores_the_later_is_better_and_nan_is_none(tmp_path):
    for step, score in ((1, 0.5), (2, 0.5), (3, float("nan")), (4, 0.0)):
        make(tmp_path, step, score)
    assert steps_of(folders.expired(tmp_path, keep_last=1, keep_best=1)) == [1, 3]


def test_errors_name_the_file_and_the_way_out(tmp_path):
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    (second / "shard").write_bytes(b"short")
    with pytest.raises(UserError, match=r"shard has 5 bytes instead of 102.*resume from step00000001"):
        folders.check(second)
    (first / "shard").unlink()
    with pytest.raises(UserError, match="shard is missing"):
        folders.check(first)
    manifest = json.loads((second / folders.MANIFEST).read_text())
    (second / folders.MANIFEST).write_text(json.dumps(manifest | {"unknown": 1}))
    with pytest.raises(UserError, match="not a manifest"):
        folders.check(second)


def test_a_checkpoint_that_was_moved_aside_is_not_complete(tmp_path):
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    second.rename(tmp_path / f"{second.name}.damaged")
    (tmp_path / "steps").mkdir()
    assert folders.complete(tmp_path) == [first]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ([], "it is not an object"),
        (5, "it is not an object"),
        ({"a": 5}, "unexpected keyword"),
        ({}, "missing 4 required"),
        ({"files": {}}, "files is {}"),
        ({"files": []}, r"files is \[\]"),
        ({"files": {"a": 5}}, "a has 5 in place of bytes and checksum"),
        ({"files": {"a": [5]}}, "a has"),
        ({"files": {"a": [5, "x"]}}, "a has"),
        ({"files": {"a": [5, True]}}, "a has"),
        ({"files": {"a": [-1, 5]}}, "a has"),
        ({"files": {"../shard": [5, 5]}}, "'../shard' is no name"),
        ({"files": {"/etc/passwd": [5, 5]}}, "'/etc/passwd' is no name"),
        ({"files": {"a/b": [5, 5]}}, "'a/b' is no name"),
        ({"files": {"..": [5, 5]}}, "'..' is no name"),
        ({"files": {"": [5, 5]}}, "'' is no name"),
        ({"files": {"a\0b": [5, 5]}}, "is no name"),
        ({"step": "2"}, "step is '2'"),
        ({"step": True}, "step is True"),
        ({"score": "best"}, "score is 'best'"),
        ({"layout": []}, r"layout is \[\]"),
        ({"layout": {"tensor": None}}, "layout is"),
        ({"step": 3}, "its checksum does not match"),
        ({"score": 0.5}, "its checksum does not match"),
    ],
)
def test_a_manifest_in_another_form_is_named(tmp_path, change, reason):
    path = make(tmp_path, 2)
    file = path / folders.MANIFEST
    whole = json.loads(file.read_text())
    is_part = isinstance(change, dict) and change.keys() & whole.keys()
    file.write_text(json.dumps(whole | change if is_part else change))
    with pytest.raises(
        UserError, match=rf"manifest\.json is not a manifest \(.*{reason}.*\); nothing"
    ) as found:
        folders.check(path)
    assert "\n" not in str(found.value)


def test_a_manifest_must_list_the_files_of_every_checkpoint(tmp_path):
    path = make(tmp_path, 2)
    fields = json.loads((path / folders.MANIFEST).read_text())
    del fields["files"][".metadata"], fields["checksum"]
    (path / folders.MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(UserError, match=r"manifest\.json does not list \.metadata"):
        folders.check(path)


def test_no_flipped_bit_of_a_manifest_changes_what_it_states(tmp_path):
    path = make(tmp_path, 2, score=0.25)
    whole, manifest = (path / folders.MANIFEST).read_bytes(), folders.check(path)
    num_refused = 0
    for place in range(0, len(whole), 5):
        for bit in range(8):
            data = bytearray(whole)
            data[place] ^= 1 << bit
            (path / folders.MANIFEST).write_bytes(data)
            try:
                assert folders.read_manifest(path) == manifest, (
                    place,
                    bit,
                )  # a bit of the layout of the text
            except UserError:
                num_refused += 1
    assert num_refused > len(whole) / 5 * 8 / 2


def test_a_damaged_manifest_neither_stops_a_save_nor_loses_a_checkpoint(tmp_path):
    for step in (1, 2, 3, 4):
        make(tmp_path, step, score=step / 10)
    (folders.path_of(tmp_path, 2) / folders.MANIFEST).write_text("{")
    assert steps_of(folders.expired(tmp_path, keep_last=1, keep_best=0)) == [1, 3]


def test_a_file_that_cannot_be_read_is_a_fault_of_its_checkpoint(tmp_path, monkeypatch):
    path = make(tmp_path, 1)
    manifest = folders.check(path)

    def fails(file):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(folders, "crc32_of", fails)
    assert folders.find_fault(path, manifest, rank=0, world_size=1) == ".metadata: Input/output error"
