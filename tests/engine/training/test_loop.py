"""How a stage ends early: what is logged, what is saved, and that the optimizer's state is there to be saved."""

import json
from types import SimpleNamespace

import pytest
from ralign.engine.config.run import Run
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.report.progress import Progress
from ralign.engine.runtime.errors import UserError
from ralign.engine.training import loop as stage_loop
from ralign.engine.training.loop import StageLoop


class FakeStage:
    """Learns nothing; `fails_in` is the step in which its judge stops."""

    def __init__(self, fails_in: int | None = None):
        self.num_steps_done, self.fails_in = 0, fails_in
        self.models = {"policy": SimpleNamespace(num_skipped_updates=0)}

    def step(self) -> dict[str, float]:
        if self.num_steps_done + 1 == self.fails_in:
            raise JudgeStopped("the budget is spent")
        self.num_steps_done += 1
        return {"step": self.num_steps_done, "reward/mean": 0.5}

    def state_dict(self) -> int:
        return self.num_steps_done


class FakeMemory:
    """Knows whether the optimizer's state is on the device."""

    def __init__(self):
        self.is_home = True

    def before_training(self) -> None:
        self.is_home = True

    def metrics(self) -> dict[str, float]:
        return {}


class Left(Exception):
    pass


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A loop on one rank, and what its checkpoints are asked to save."""
    saved = []
    memory = FakeMemory()

    class FakeCheckpoints:
        is_written = True

        def __init__(self, *args, **kwargs):
            pass

        def restore(self):
            return None

        def wait(self):
            pass

        def save(self, step, state, score=None):
            assert memory.is_home and state == step
            saved.append(step)

    monkeypatch.setattr(stage_loop, "Checkpoints", FakeCheckpoints)
    cluster = SimpleNamespace(is_first_rank=True, all_true=lambda *flags: flags)
    stop = SimpleNamespace(requested=False)
    watchdog = SimpleNamespace(phase=lambda name: None)

    def leave(message):
        raise Left(message)

    run = Run(name="run", out=str(tmp_path), checkpoint_every=2)
    loop = StageLoop(run, cluster, memory, Progress(enabled=False), watchdog, stop, leave)

    def train(stage, num_steps=5, after_step=lambda step: {}):
        loop.train("rl", "RL", stage, stage.step, num_steps, after_step)

    def logged():
        return [json.loads(line) for line in (tmp_path / "run/rl/metrics.jsonl").read_text().splitlines()]

    return SimpleNamespace(train=train, saved=saved, memory=memory, stop=stop, logged=logged)


def test_a_checkpoint_after_a_look_at_the_judge_finds_the_optimizers_state(lab):
    def look(step: int) -> dict[str, float]:
        lab.memory.is_home = False  # generating for the judge sent it away
        return {"actor/win_rate": 0.5}

    lab.train(FakeStage(), after_step=look)
    assert lab.saved == [2, 4, 5]
    assert [row["actor/win_rate"] for row in lab.logged()] == [0.5] * 5


def test_a_judge_that_stops_in_a_step_leaves_the_one_before(lab):
    with pytest.raises(JudgeStopped, match="budget"):
        lab.train(FakeStage(fails_in=4))
    assert lab.saved == [2, 3] and [row["step"] for row in lab.logged()] == [1, 2, 3]


def test_a_judge_that_stops_after_a_step_leaves_that_one_logged_and_saved(lab):
    def look(step: int) -> dict[str, float]:
        if step == 3:
            lab.memory.is_home = False
            raise JudgeStopped("the budget is spent")
        return {}

    with pytest.raises(JudgeStopped):
        lab.train(FakeStage(), after_step=look)
    assert lab.saved == [2, 3] and [row["step"] for row in lab.logged()] == [1, 2, 3]


def test_a_judge_that_stops_in_the_first_step_leaves_nothing(lab):
    with pytest.raises(JudgeStopped):
        lab.train(FakeStage(fails_in=1))
    assert lab.saved == []


def test_a_run_that_is_asked_to_stop_saves_its_step_and_leaves(lab):
    stage = FakeStage()

    def ask(step: int) -> dict[str, float]:
        lab.stop.requested = step == 3
        return {}

    with pytest.raises(Left, match="saved step 3"):
        lab.train(stage, after_step=ask)
    assert lab.saved == [2, 3]


def test_too_many_skipped_updates_end_the_stage(lab):
    stage = FakeStage()
    stage.models["policy"].num_skipped_updates = 1000
    with pytest.raises(UserError, match=r"step 1: 1000 updates of the policy were skipped.*optim\.lr"):
        lab.train(stage)
