"""Evaluation while training: without a MetaRM, at a stop between two evaluations, and of the newest weights."""

from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.config.judge import EvalMetaRMConfig
from ralign.engine.config.run import EvalConfig, GenRMRun, SFTConfig
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.training import loop
from ralign.engine.training.genrm import GenRM

PAIRS = build_judgeworld(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
EXAMPLES = [Example(pair=pair, prompt_ids=np.array([n])) for n, pair in enumerate(PAIRS)]


class Engine:
    """Answers with the golden judgment; `num_news` counts the changes of weights that it was told of."""

    def __init__(self, replicas):
        self.replicas, self.num_news = replicas, 0

    def generate(self, prompts, *, on_finished, **_):
        found = [
            Rollout(
                prompt_index=n,
                response_ids=np.array(prompt),
                logprobs=np.zeros(1, dtype=np.float32),
                finish_reason="stop",
                weight_version=0,
            )
            for n, prompt in enumerate(prompts)
        ]
        for index, rollout in enumerate(found):
            on_finished(index, rollout)
        return found

    def weights_changed(self):
        self.num_news += 1

    weights_updated = weights_changed

    def wake(self):
        pass

    def sleep(self):
        pass

    def verify(self):
        pass


@pytest.fixture
def session(make_session, one_rank):
    tokenizer = SimpleNamespace(decode=lambda row, **_: PAIRS[row[0]].gt_judgment)
    return make_session(generator=Engine(one_rank), tokenizer=tokenizer)


@pytest.mark.parametrize(("kind", "metarm"), [("none", RuleMetaRM()), ("same", None)])
def test_without_a_metarm_an_evaluation_measures_label_accuracy_alone(session, kind, metarm):
    run = GenRMRun(eval=EvalConfig(every=1, metarm=EvalMetaRMConfig(kind=kind)))
    found = GenRM(session, run, metarm).watch(EXAMPLES)(1)
    assert found["eval/l_acc"] == 1.0
    assert np.isnan(found["eval/s_corr"]) and np.isnan(found["eval/f_score"])  # not 0


class Stage:
    """Learns nothing; its run is asked to stop in step 3."""

    is_complete = False

    def __init__(self, session):
        self.session, self.num_steps_done = session, 0
        self.models = {"policy": SimpleNamespace(num_skipped_updates=0)}

    def step(self):
        self.num_steps_done += 1
        self.session.stop.requested = self.num_steps_done == 3
        return {"step": self.num_steps_done, "reward/mean": 0.5}, []

    def state_dict(self):
        return {}


class Saved:
    """Stands where `Checkpoints` does."""

    is_written, steps = True, []

    def __init__(self, *_, **__):
        type(self).steps = []

    def restore(self):
        return None

    def wait(self):
        pass

    def save(self, step, state, score=None):
        self.steps.append((step, score))


class StoppedEarly(Exception):
    pass


def test_a_stop_between_two_evaluations_saves_the_step_without_a_score(session, monkeypatch, tmp_path):
    def stop_early(message):
        raise StoppedEarly(message)

    monkeypatch.setattr(loop, "Checkpoints", Saved)
    session.stop_early = stop_early
    run = GenRMRun(name="run", out=str(tmp_path), checkpoint_every=2, eval=EvalConfig(every=2))
    run.checkpoint.keep_best, run.checkpoint.watch = 1, "eval/l_acc"

    def look(step):
        return {"eval/l_acc": 0.5} if step % 2 == 0 else {}

    options = {"progress_keys": ("reward/mean",), "after_step": look, "best_by": "eval/l_acc"}
    with pytest.raises(StoppedEarly, match="saved step 3"):
        loop.train(session, run, "rl", "RL", Stage(session), 5, **options)
    assert Saved.steps == [(2, 0.5), (3, None)]


def test_after_a_warm_start_the_engine_knows_of_the_new_weights(session, monkeypatch, tmp_path):
    """Else an evaluation reads prefixes of the old weights or, where the engine has its own, the old weights."""
    monkeypatch.setattr(
        loop, "train", lambda *_, **__: None
    )  # the steps; `SFT.step` does not tell the engine
    monkeypatch.setattr(session, "export", lambda folder: folder, raising=False)
    run = GenRMRun(name="run", out=str(tmp_path), sft=SFTConfig(num_steps=1, num_samples=1))
    loop.warm_start_on_ids(session, run, "sft", EXAMPLES[:1], [np.array([1])])
    assert session.generator.num_news > 0
