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
    assert folders.find_altered(path, folders.check(path), rank=0, world_size=1) is None


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
