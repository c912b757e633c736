"""Whether the same command goes on, begins afresh, or is refused."""

import json

import pytest
from ralign.engine.checkpoint import folders
from ralign.engine.checkpoint.settings import mark_finished, open_folder
from ralign.engine.config.algo import OptimConfig
from ralign.engine.config.command_line import parse
from ralign.engine.config.run import GenRMRun, ParallelConfig, Run
from ralign.engine.runtime.errors import UserError


def begun(tmp_path, kind=Run):
    run = kind(out=str(tmp_path))
    assert open_folder(run) is None
    path = folders.path_of(run.folder / "rlvr" / "checkpoints", 4)
    path.mkdir(parents=True)
    return run


def progress(run: Run) -> bool:
    return any(folders.complete(path) for path in run.folder.glob("*/checkpoints"))


def test_the_same_settings_go_on(tmp_path):
    run = begun(tmp_path)
    assert "resumes" in open_folder(run)
    run.parallel = ParallelConfig(tensor=2)  # another layout, the same run
    run.checkpoint_every = 7
    assert "resumes" in open_folder(run) and progress(run)


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
    assert "starts over" in open_folder(run)
    assert not progress(run)


def test_a_finished_run_gives_way_to_other_settings_only(tmp_path):
    run = begun(tmp_path)
    mark_finished(run)
    assert "complete with these settings" in open_folder(run) and progress(run)
    for number in (1, 2):  # each time something finished is there
        mark_finished(run)
        run.seed = number
        kept = run.folder.with_name(f"{run.folder.name}.{number}")
        assert f"starts over; the finished run with other settings is now {kept}" in open_folder(run)
        assert not progress(run) and any(folders.complete(path) for path in kept.glob("*/checkpoints"))
        assert json.loads((run.folder / "config.json").read_text())["seed"] == number
        assert json.loads((kept / "config.json").read_text())["seed"] == number - 1
        folders.path_of(run.folder / "rlvr" / "checkpoints", 4).mkdir(parents=True)


def as_of_an_earlier_version(run) -> None:
    """Its settings have a name that is no longer in use."""
    path = run.folder / "config.json"
    saved = json.loads(path.read_text())
    saved["judge"] = saved.pop("metarm") | {"metarm": "rule"}
    path.write_text(json.dumps(saved))


def test_an_interrupted_run_of_an_earlier_version_is_not_touched(tmp_path):
    run = begun(tmp_path, GenRMRun)
    as_of_an_earlier_version(run)
    before = (run.folder / "config.json").read_text()
    with pytest.raises(UserError, match=r"interrupted run of an earlier version \(judge\..*resume=never"):
        open_folder(run)
    assert progress(run) and (run.folder / "config.json").read_text() == before
    run.resume = "never"
    assert "starts over" in open_folder(run) and not progress(run)


def test_a_finished_run_of_an_earlier_version_is_kept_aside(tmp_path):
    run = begun(tmp_path, GenRMRun)
    as_of_an_earlier_version(run)
    mark_finished(run)
    assert "the finished run with other settings is now" in open_folder(run)
    assert not progress(run) and (tmp_path / "run.1" / "config.json").exists()


@pytest.mark.parametrize(
    ("setting", "is_free"),
    [
        ("metarm.base_url=http://elsewhere/v1", True),
        ("metarm.concurrency=3", True),
        ("metarm.budget_tokens=1000", True),
        ("metarm.server.tensor=2", True),
        ("metarm.max_failed_share=0.9", True),
        ("metarm.kind=none", False),
        ("metarm.model=other", False),
        ("metarm.temperature=0.9", False),
        ("metarm.template=graded", False),
    ],
)
def test_another_address_of_the_metarm_is_the_same_run_and_another_metarm_is_not(tmp_path, setting, is_free):
    changed = parse(begun(tmp_path, GenRMRun), [setting])
    if is_free:
        assert "resumes" in open_folder(changed)
    else:
        with pytest.raises(UserError, match=f"other settings: {setting.partition('=')[0]} was"):
            open_folder(changed)


def test_a_run_without_a_checkpoint_begins(tmp_path):
    run = Run(out=str(tmp_path))
    assert open_folder(run) is None and open_folder(Run(out=str(tmp_path), seed=5)) is None


@pytest.mark.parametrize("text", ['{"seed": 1', "5", "[]", "{}", "null", "[" * 100_000, "\udcff"])
def test_settings_that_cannot_be_read_are_one_line(tmp_path, text):
    run = begun(tmp_path)
    (run.folder / "config.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(
        UserError, match=r"cannot read the interrupted run's settings in .*resume=never"
    ) as found:
        open_folder(run)
    assert "\n" not in str(found.value) and progress(run)
