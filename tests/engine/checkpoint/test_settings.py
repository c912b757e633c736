"""Whether the same command goes on, begins afresh, or is refused."""

import json

import pytest
from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.config.run import OptimConfig, ParallelConfig, Run
from ralign.engine.runtime.errors import UserError


def begun(tmp_path, **settings) -> Run:
    run = Run(out=str(tmp_path), **settings)
    assert open_folder(run) is None
    path = folders.path_of(run.folder / "rlvr" / "checkpoints", 4)
    path.mkdir(parents=True)
    return run


def progress(run: Run) -> bool:
    return any(folders.complete(path) for path in run.folder.glob("*/checkpoints"))


def test_the_same_settings_go_on(tmp_path):
    run = begun(tmp_path)
    assert "goes on" in open_folder(run)
    run.parallel = ParallelConfig(tensor=2)  # another layout, the same run
    run.checkpoint_every = 7
    assert "goes on" in open_folder(run) and progress(run)


def test_an_interrupted_run_of_other_settings_is_not_touched(tmp_path):
    run = begun(tmp_path)
    run.optim = OptimConfig(lr=3e-5)
    before = (run.folder / "config.json").read_text()
    with pytest.raises(UserError, match=r"optim\.lr was 1e-06, now 3e-05.*resume=never"):
        open_folder(run)
    assert progress(run) and (run.folder / "config.json").read_text() == before


def test_resume_never_starts_afresh(tmp_path):
    run = begun(tmp_path)
    run.resume = "never"
    assert "afresh" in open_folder(run)
    assert not progress(run)


def test_a_finished_run_gives_way_to_other_settings_only(tmp_path):
    run = begun(tmp_path)
    mark_finished(run)
    assert "complete with these settings" in open_folder(run) and progress(run)
    for number in (1, 2):  # each time something finished is there
        mark_finished(run)
        run.seed = number
        kept = run.folder.with_name(f"{run.folder.name}.{number}")
        assert f"afresh; the finished run with other settings is now {kept}" in open_folder(run)
        assert not progress(run) and any(folders.complete(path) for path in kept.glob("*/checkpoints"))
        assert json.loads((run.folder / "config.json").read_text())["seed"] == number
        assert json.loads((kept / "config.json").read_text())["seed"] == number - 1
        folders.path_of(run.folder / "rlvr" / "checkpoints", 4).mkdir(parents=True)


def test_a_run_without_a_checkpoint_begins(tmp_path):
    run = Run(out=str(tmp_path))
    assert open_folder(run) is None and open_folder(Run(out=str(tmp_path), seed=5)) is None
