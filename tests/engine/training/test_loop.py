"""How a stage ends early: what is logged, what is saved, and that the optimizer's state is there to be saved."""

import errno
import json
import shutil
from types import SimpleNamespace

import pytest
from ralign.engine.config.run import Run
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.runtime.errors import UserError
from ralign.engine.training import loop


class FakeStage:
    """Learns nothing; `fails_in` is the step in which its judge stops."""

    is_complete = False

    def __init__(self, fails_in: int | None = None):
        self.num_steps_done, self.fails_in = 0, fails_in
        self.models = {"policy": SimpleNamespace(num_skipped_updates=0)}

    def step(self) -> tuple[dict[str, float], list]:
        if self.num_steps_done + 1 == self.fails_in:
            raise JudgeStopped("the budget is spent")
        self.num_steps_done += 1
        return {"step": self.num_steps_done, "reward/mean": self.num_steps_done / 10}, [self.num_steps_done]

    def state_dict(self) -> int:
        return self.num_steps_done


class StoppedEarly(Exception):
    pass


@pytest.fixture
def lab(tmp_path, monkeypatch, make_session):
    """A session on one rank, and what its checkpoints are asked to save."""
    session = make_session(generator=SimpleNamespace(sleep=lambda: session.events.append("sleep")))
    saved: list[int] = []
    scores: list[float | None] = []

    class FakeCheckpoints:
        is_written = True

        @property
        def last_step(self):
            return saved[-1] if saved else 0

        def __init__(self, *args, **kwargs):
            pass

        def restore(self):
            return None

        def wait(self):
            pass

        def save(self, step, state, score=None):
            assert session.memory.is_home and state == step
            saved.append(step)
            scores.append(score)

    def stop_early(message):
        raise StoppedEarly(message)

    monkeypatch.setattr(loop, "Checkpoints", FakeCheckpoints)
    session.stop_early = stop_early
    run = Run(name="run", out=str(tmp_path), checkpoint_every=2)

    def train(stage, num_steps=5, **options):
        loop.train(session, run, "rl", "RL", stage, num_steps, progress_keys=("reward/mean",), **options)

    def logged():
        return [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]

    return SimpleNamespace(run=run, train=train, saved=saved, scores=scores, session=session, logged=logged)


def test_a_checkpoint_after_a_look_at_the_judge_finds_the_optimizers_state(lab):
    def look(step: int) -> dict[str, float]:
        lab.session.memory.is_home = False  # generating for the judge sent it away
        return {"actor/win_rate": 0.5}

    lab.train(FakeStage(), after_step=look)
    assert lab.saved == [2, 4, 5]
    assert [row["actor/win_rate"] for row in lab.logged()] == [0.5] * 5


def test_a_stage_that_is_complete_ends_before_its_last_step_with_a_checkpoint(lab):
    class Complete(FakeStage):
        @property
        def is_complete(self):
            return self.num_steps_done >= 3

    lab.train(Complete())
    assert lab.saved == [2, 3] and len(lab.logged()) == 3


_TRACKER = """
import json

class Lines:
    def __init__(self, stage):
        self.path = stage.folder / "tracked.jsonl"

    def log(self, step, metrics):
        if step == 3:
            raise ConnectionError("gone")
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\\n")

    def close(self):
        self.path.with_name("closed").touch()
"""


def test_a_tracker_gets_what_the_log_gets_and_its_failure_does_not_end_the_run(lab, tmp_path):
    (tmp_path / "mine.py").write_text(_TRACKER)
    lab.run.report.trackers = f"{tmp_path}/mine.py:Lines"
    lab.train(FakeStage(), num_steps=2, after_step=lambda step: {"actor/win_rate": 0.5})
    folder = tmp_path / "run" / "rl"
    tracked = [json.loads(line) for line in (folder / "tracked.jsonl").read_text().splitlines()]
    assert tracked == lab.logged() and len(tracked) == 2 and (folder / "closed").exists()
    lab.train(FakeStage(), num_steps=5)
    assert [row["step"] for row in lab.logged()] == [1, 2, 3, 4, 5] and lab.saved[-1] == 5
    tracked = [json.loads(line)["step"] for line in (folder / "tracked.jsonl").read_text().splitlines()]
    assert tracked == [1, 2, 1, 2]


def test_a_judge_that_stops_in_a_step_leaves_the_one_before(lab):
    with pytest.raises(JudgeStopped, match="budget"):
        lab.train(FakeStage(fails_in=4))
    assert lab.saved == [2, 3] and [row["step"] for row in lab.logged()] == [1, 2, 3]


def test_a_judge_that_stops_after_a_step_leaves_that_one_logged_and_saved(lab):
    def look(step: int) -> dict[str, float]:
        if step == 3:
            lab.session.memory.is_home = False
            raise JudgeStopped("the budget is spent")
        return {}

    with pytest.raises(JudgeStopped):
        lab.train(FakeStage(), after_step=look)
    assert lab.saved == [2, 3] and [row["step"] for row in lab.logged()] == [1, 2, 3]


def test_a_judge_that_stops_in_the_first_step_leaves_nothing(lab):
    with pytest.raises(JudgeStopped):
        lab.train(FakeStage(fails_in=1))
    assert lab.saved == []


def test_a_run_that_is_asked_to_stop_saves_its_step_and_ends(lab):
    stage = FakeStage()

    def ask(step: int) -> dict[str, float]:
        lab.session.stop.requested = step == 3
        return {}

    with pytest.raises(StoppedEarly, match="saved step 3"):
        lab.train(stage, after_step=ask)
    assert lab.saved == [2, 3]


@pytest.mark.parametrize(("where", "shown"), [(("runs/x.jsonl",), "x.jsonl"), ((), "run/rl")])
def test_a_full_disk_is_one_line_that_says_from_where_the_run_continues(lab, where, shown):
    def full(number, responses):
        if number == 4:
            raise OSError(errno.ENOSPC, "No space left on device", *where)

    with pytest.raises(UserError, match=f"{shown}: No space left on device; .* continues rl after step 2"):
        lab.train(FakeStage(), on_responses=full)
    assert lab.saved == [2]


def test_a_folder_that_is_removed_midway_is_one_line(lab, tmp_path):
    def remove(number, responses):
        if number == 3:
            shutil.rmtree(tmp_path / "run")

    with pytest.raises(UserError, match="run/rl was removed while the run was writing to it"):
        lab.train(FakeStage(), on_responses=remove)


def test_another_error_of_the_disk_is_none_of_room(lab):
    def broken(number, responses):
        raise OSError(errno.EIO, "Input/output error", "runs/x.jsonl")

    with pytest.raises(OSError, match="Input/output"):
        lab.train(FakeStage(), on_responses=broken)


def test_too_many_skipped_updates_end_the_stage(lab):
    stage = FakeStage()
    stage.models["policy"].num_skipped_updates = 1000
    with pytest.raises(UserError, match=r"step 1: 1000 updates of the policy were skipped.*optim\.lr"):
        lab.train(stage)


def test_the_metric_that_is_watched_is_the_score_of_each_checkpoint(lab):
    lab.train(FakeStage(), best_by="reward/mean")
    assert lab.saved == [2, 4, 5] and lab.scores == [0.2, 0.4, 0.5]


def test_a_metric_that_is_measured_with_every_checkpoint_may_be_watched(lab):
    """As the win rate of every `actor.watch_every`-th step; a checkpoint without it is refused."""

    def look(step: int) -> dict[str, float]:
        return {"actor/win_rate": step / 10} if step % 2 == 0 else {}

    lab.train(FakeStage(), num_steps=4, after_step=look, best_by="actor/win_rate")
    assert lab.saved == [2, 4] and lab.scores == [0.2, 0.4]
    with pytest.raises(UserError, match=r"checkpoint\.watch=actor/win_rate: no such metric; .*reward/mean"):
        lab.train(FakeStage(), num_steps=3, after_step=look, best_by="actor/win_rate")


def test_responses_are_given_out_once_a_step_under_its_number(lab):
    given: list[tuple[int, list]] = []
    lab.train(FakeStage(), num_steps=3, on_responses=lambda step, responses: given.append((step, responses)))
    assert given == [(1, [1]), (2, [2]), (3, [3])]
