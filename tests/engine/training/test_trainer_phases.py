"""The order of a step: phases, moves of memory, the engine's cache, and judges, which may share the device."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.judge import JudgeStopped
from ralign.engine.policy.megatron_model import UpdateStats
from ralign.engine.training.tasks import GenRMTask
from ralign.engine.training.trainer import Trainer


class RecordedGenerator:
    """An engine whose answers are one token each."""

    weight_version = 0

    def __init__(self, replicas):
        self.replicas, self.events = replicas, []

    def generate(self, prompts, *, num_samples, **_):
        self.events.append("generate!")
        return [
            Rollout(
                prompt_index=n // num_samples,
                response_ids=np.array([5]),
                logprobs=np.zeros(1, dtype=np.float32),
                finish_reason="stop",
                weight_version=0,
            )
            for n in range(len(prompts) * num_samples)
        ]

    def wake(self):
        self.events.append("wake")

    def sleep(self):
        self.events.append("sleep")

    def prove(self):
        self.events.append("prove")

    def verify(self):
        self.events.append("verify")

    def weights_updated(self):
        self.events.append("updated")


class RecordedPolicy:
    pad_multiple = 1

    def __init__(self, hf_config):
        self.hf_config = hf_config

    def start_training(self, optim, num_steps):
        pass

    def logprobs(self, micro_batches):
        return [(batch.targets * 0.0, None) for batch in micro_batches]

    def forward_backward(self, micro_batches, loss):
        self.events.append("backward!")

    def optimizer_step(self, objection=None):
        self.events.append("step!")
        return UpdateStats(loss=0.0, grad_norm=1.0, lr=1e-3, metrics={"num_tokens": 1.0})


class RecordedTask(GenRMTask):
    """Judges that are awake within `judging`; `stops_in` names the method in which they stop."""

    stops_in = ""

    @contextmanager
    def judging(self):
        self.events.append("judges awake")
        try:
            with super().judging():
                yield
        finally:
            self.events.append("judges asleep")

    def judge(self, responses, step):
        self._stop("judge")
        return super().judge(responses, step)

    def reward(self, judged):
        self._stop("reward")
        return super().reward(judged)

    def _stop(self, where):
        self.events.append(f"{where}!")
        if self.stops_in == where:
            raise JudgeStopped("the budget is spent")


class RecordedPPO:
    """One step of warm-up."""

    def __init__(self, events):
        self.events = events

    def add_advantages(self, updates):
        self.events.append("advantages!")

    def learn(self, micro_batches):
        self.events.append("learn!")

    def is_warming_up(self, num_steps_done):
        return num_steps_done == 0

    def metrics(self, stats):
        return {}


@pytest.fixture
def make_trainer(make_session, one_rank, no_policy):
    def make(*, num_updates=1) -> Trainer:
        run = GenRMRun(algo=AlgoConfig(reward="label", num_prompts=2, num_samples=2, num_updates=num_updates))
        pairs = build_judgeworld(JudgeWorldConfig(num_train=8, num_dev=1, num_test=1))["train"]
        examples = [Example(pair=pair, prompt_ids=np.arange(5)) for pair in pairs]
        session = make_session(
            policy=RecordedPolicy(no_policy.hf_config),
            generator=RecordedGenerator(one_rank),
            tokenizer=SimpleNamespace(decode=lambda row, **_: r"\boxed{A}"),
        )
        task = RecordedTask(run, examples, None, one_rank, run.algo.reward)
        session.generator.events = session.policy.events = task.events = session.events
        return Trainer(session, run, task)

    return make


WAKE = ["generate", "offload", "wake", "judges awake"]
GENERATE = [*WAKE, "measure generate", "generate", "generate!", "measure generate"]
JUDGE = ["judge", "judge!", "reward!", "measure judge", "judge", "judges asleep", "measure judge"]
PLAN = ["plan", "sleep", "onload", "measure plan"]
OLD_LOGPROBS = ["old_logprobs", "measure old_logprobs"]
UPDATE = ["forward_backward", "backward!", "measure forward_backward",
          "optimizer", "wait", "step!", "updated", "measure optimizer"]  # fmt: skip


def test_the_order_of_a_step(make_trainer):
    """The engine has the device from the offload to the sleep, judges within, and Adam's moments are back in time."""
    trainer = make_trainer(num_updates=2)
    trainer.step()
    events = trainer.session.events
    assert events == [*GENERATE, *JUDGE, *PLAN, *OLD_LOGPROBS, *UPDATE, *UPDATE, "verify"]
    events.clear()
    trainer.step()  # the proof of the first update, where memory is the engine's
    second = [*GENERATE[:4], "prove", "wake", *GENERATE[4:]]
    assert events == [*second, *JUDGE, *PLAN, *OLD_LOGPROBS, *UPDATE, *UPDATE]
    events.clear()
    trainer.step()
    assert events == [*GENERATE, *JUDGE, *PLAN, *OLD_LOGPROBS, *UPDATE, *UPDATE]


def test_a_critic_learns_with_its_optimizers_state_and_alone_while_it_warms_up(make_trainer):
    trainer = make_trainer()
    trainer.ppo = RecordedPPO(trainer.session.events)
    values = ["values", "advantages!", "measure values"]
    critic = ["critic", "wait", "learn!", "measure critic"]
    trainer.step()
    events = trainer.session.events
    assert events == [*GENERATE, *JUDGE, *PLAN, *OLD_LOGPROBS, *values, *critic]
    events.clear()
    trainer.step()
    assert events == [*GENERATE, *JUDGE, *PLAN, *OLD_LOGPROBS, *values, *critic, *UPDATE, "verify"]


@pytest.mark.parametrize("stops_in", ["judge", "reward"])
def test_a_judge_that_stops_goes_to_sleep_and_its_step_comes_again(make_trainer, stops_in):
    trainer = make_trainer()
    trainer.task.stops_in = stops_in
    before = trainer.sampling.sampler.state_dict()
    with pytest.raises(JudgeStopped):
        trainer.step()
    assert trainer.session.events[-1] == "judges asleep"
    assert trainer.sampling.sampler.state_dict() == before and trainer.num_steps_done == 0
