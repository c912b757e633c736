"""With algo.truncated=mask a cut-off answer has no place anywhere: not for the twin, nor in a mean length."""

import numpy as np
import pytest
from ralign.engine.actors.task import ActorExample, ActorTask
from ralign.engine.config.actor import ActorConfig, ActorRun
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.swap import swap_sides
from ralign.engine.data.worlds.actorworld import build_notes
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.generator.generator import Rollout
from ralign.engine.judging.metarm import Outcome
from ralign.engine.training.tasks import GenRMTask, JudgedResponse, Response

SMALL = JudgeWorldConfig(num_train=8, num_dev=1, num_test=1)


def rollout(num_tokens: int, *, is_cut: bool) -> Rollout:
    return Rollout(
        prompt_index=0,
        response_ids=np.arange(num_tokens),
        logprobs=np.zeros(num_tokens, dtype=np.float32),
        finish_reason="length" if is_cut else "stop",
        weight_version=0,
    )


@pytest.mark.parametrize(
    ("cut", "earned"),
    [
        ((), [1.0, 1.0, 1.0, 1.0]),
        ((2,), [1.0, 1.0, 0.0, 1.0]),  # the twin's mean is over its one answer
        ((2, 3), [0.0, 0.0, 0.0, 0.0]),  # nothing is known of the twin: all are unknown
    ],
)
def test_a_masked_judgment_does_not_count_for_the_twin(cut, earned):
    """Two right judgments of each twin, of which some are cut off."""
    pair = build_judgeworld(SMALL)["train"][0]
    examples = [Example(pair=order, prompt_ids=np.arange(3)) for order in (pair, swap_sides(pair))]
    run = GenRMRun(algo=AlgoConfig(reward="label", partner="order", couple=True, truncated="mask"))
    judged = [
        JudgedResponse(
            example=n // 2,
            group=n // 2,
            rollout=rollout(4, is_cut=n in cut),
            text="",
            verdict=None if n in cut else examples[n // 2].pair.gt_label,
            outcome=Outcome.SKIPPED,
        )
        for n in range(4)
    ]
    rewards = GenRMTask(run, examples, None, None, "label").reward(judged)
    known = len(cut) < 2
    assert rewards.valid.tolist() == [known and n not in cut for n in range(4)]
    assert rewards.values.tolist() == earned
    if known:
        assert rewards.num_invalid == 0  # a masked judgment is not one without a verdict


def test_a_masked_answer_does_not_count_in_the_mean_length_of_its_group(one_rank):
    run = ActorRun(
        algo=AlgoConfig(num_prompts=1, num_samples=3, truncated="mask"), actor=ActorConfig(length_penalty=0.5)
    )
    note = build_notes(SMALL)["train"][0]
    task = ActorTask(run, [ActorExample(question=note, prompt_ids=np.arange(3))], None, one_rank)
    text = " ".join(f"The {item} is {value}." for item, value in note.facts.items())
    responses = [
        Response(example=0, group=0, rollout=rollout(length, is_cut=length == 128), text=text)
        for length in (20, 40, 128)
    ]
    rewards = task.reward(task.judge(responses, 0))
    assert rewards.valid.tolist() == [True, True, False]
    assert rewards.bonus.sum() == pytest.approx(0, abs=1e-7)  # as in a group of these two
