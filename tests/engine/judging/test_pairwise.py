"""Rewards of groups of answers from comparisons by a GenRM behind the `Judge` interface."""

import re
from concurrent.futures import Future

import numpy as np
import pytest
from ralign.engine.data.verdicts import FORMS
from ralign.engine.judging.comparisons import Answer, Schedule
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply, Usage
from ralign.engine.judging.pairwise import Group, PairwiseReward, read_answer


class LongerIsBetter(Judge):
    """Prefers the longer text. `fails` and `mute` choose prompts without an answer, or without a verdict."""

    stop_reason = None

    def __init__(self, fails=lambda prompt, attempt: False, mute=lambda prompt, attempt: False):
        self.usage, self.asked = Usage(), []
        self.fails, self.mute = fails, mute

    def submit(self, request):
        ((_, prompt),) = request.messages
        self.asked.append((prompt, request.attempt))
        a, b = re.search(r"A=(.*) B=(.*)", prompt).groups()
        future: Future = Future()
        if self.fails(prompt, request.attempt):
            future.set_result(Reply(failed=True, problem="lost"))
        elif self.mute(prompt, request.attempt):
            future.set_result(Reply(text=r"<think>\boxed{A}"))
        else:
            future.set_result(Reply(text=f"\\boxed{{{'A' if len(a) > len(b) else 'B'}}}"))
        return future


def group(name, texts, reference=None):
    return Group(
        name=name,
        texts=texts,
        messages_for=lambda first, second: (("user", f"{name}: A={first} B={second}"),),
        reference=reference,
    )


def schedule(scheme, num=4, **options):
    return Schedule(scheme=scheme, num_samples=num, **options)


@pytest.mark.parametrize("scheme", ["circular", "all_pairs", "knockout"])
def test_the_best_answer_of_each_group_gets_the_largest_reward(scheme):
    judge = LongerIsBetter()
    groups = [group("p", ["xx", "xxxx", "x", "xxx"]), group("q", ["xxxx", "x", "xxx", "xx"])]
    results = PairwiseReward(judge, schedule(scheme)).score(groups, seed=0)
    assert [int(result.rewards.argmax()) for result in results] == [1, 0]
    lowest = -0.5 if scheme == "knockout" else -1  # lost the one match of two rounds
    assert all(
        result.rewards.max() == 1 and result.rewards.min() == pytest.approx(lowest) for result in results
    )
    assert len(judge.asked) == 2 * schedule(scheme).num_calls == sum(r.stats.num_calls for r in results)


def test_against_a_reference():
    result = PairwiseReward(LongerIsBetter(), schedule("reference")).score(
        [group("p", ["x", "xxxx", "xxxxx", "xx"], reference="xxx")], seed=0
    )[0]
    assert result.rewards.tolist() == [-1, 1, 1, -1]


def test_equal_answers_tie_without_a_call():
    judge = LongerIsBetter()
    result = PairwiseReward(judge, schedule("all_pairs", 3)).score([group("p", ["xx", "xx", "x"])], seed=0)[0]
    assert len(judge.asked) == 2 == result.stats.num_calls
    assert result.rewards.tolist() == [0.5, 0.5, -1]
    assert (result.stats.num_same, result.stats.num_ties) == (1, 0)


def test_calls_that_all_fail_are_not_hidden_by_equal_answers():
    lost = LongerIsBetter(fails=lambda prompt, attempt: True)
    texts = ["x"] * 7 + ["xx"]
    result = PairwiseReward(lost, schedule("circular", 8, order="both")).score([group("p", texts)], seed=0)[0]
    assert len(lost.asked) == result.stats.num_calls == result.stats.num_failed == 4
    assert result.stats.num_same == 6 and np.isnan(result.stats.swap_consistency)


def test_the_first_calls_are_kept_as_transcripts():
    judge = LongerIsBetter(
        fails=lambda prompt, attempt: prompt.endswith("A=xxxx B=xx"),
        mute=lambda prompt, attempt: "A=x " in prompt,
    )
    groups = [group("p", ["xxxx", "x", "xxx", "xx"]), group("q", ["xxxx", "xxxx", "xxxx", "xxxx"])]
    groups.append(group("r", ["xxxx", "x", "xxx", "xx"]))
    reward_model = PairwiseReward(judge, schedule("all_pairs", order="both"))
    kept = [result.transcripts for result in reward_model.score(groups, 0, num_kept=14)]
    assert [len(part) for part in kept] == [12, 0, 2]  # equal answers make no calls
    for said in kept[0]:
        texts = [groups[0].texts[n] for n in (said.call.first, said.call.second)]
        assert [said.first, said.second] == texts
        if texts == ["xxxx", "xx"]:
            assert (said.reply, said.problem, said.answer) == ("", "lost", Answer.FAILED)
        elif texts[0] == "x":
            assert (said.reply, said.answer) == (r"<think>\boxed{A}", Answer.UNPARSABLE)
        else:
            longer_first = len(texts[0]) > len(texts[1])
            assert said.answer is (Answer.FIRST if longer_first else Answer.SECOND)
            assert said.reply == f"\\boxed{{{'A' if longer_first else 'B'}}}"
    assert not any(result.transcripts for result in reward_model.score(groups, 0))


def test_calls_with_a_common_prefix_are_sent_together():
    judge = LongerIsBetter()
    groups = [group(name, ["xxxx", "x", "xxx", "xx"]) for name in "pqp"[:2]]
    PairwiseReward(judge, schedule("all_pairs", order="both")).score(groups, seed=0)
    beginnings = [prompt.split(" B=")[0] for prompt, _ in judge.asked]
    changes = 1 + sum(a != b for a, b in zip(beginnings, beginnings[1:], strict=False))
    assert changes == len(set(beginnings)) == 8


def test_an_answer_without_a_verdict_is_requested_again_and_a_failed_call_is_not():
    mute = LongerIsBetter(mute=lambda prompt, attempt: attempt == 0)
    result = PairwiseReward(mute, schedule("circular"), num_tries=2).score(
        [group("p", ["x", "xx", "xxx", ""])], 0
    )
    assert result[0].stats.num_unparsable == 0 and len(mute.asked) == 8
    lost = LongerIsBetter(fails=lambda prompt, attempt: True)
    result = PairwiseReward(lost, schedule("circular"), num_tries=2).score(
        [group("p", ["x", "xx", "xxx", ""])], 0
    )
    assert len(lost.asked) == 4 and result[0].stats.num_failed == result[0].stats.num_masked == 4
    assert not result[0].valid.any()


def test_the_same_seed_draws_the_same_order_whatever_the_other_groups():
    texts = ["xxxx", "x", "xxx", "xx"]

    def prompts(groups, seed):
        judge = LongerIsBetter()
        PairwiseReward(judge, schedule("all_pairs")).score(groups, seed)
        return [prompt for prompt, _ in judge.asked if prompt.startswith("p")]

    alone = prompts([group("p", texts)], 1)
    assert prompts([group("q", texts), group("p", texts)], 1) == alone
    assert any(prompts([group("p", texts)], seed) != alone for seed in range(2, 6))


def test_a_stopped_judge_raises():
    judge = LongerIsBetter()
    judge.stop_reason = "the budget of 5 tokens is spent"
    with pytest.raises(JudgeStopped, match="budget of 5"):
        PairwiseReward(judge, schedule("circular")).score([group("p", ["x", "xx", "xxx", ""])], 0)


def test_the_genrms_verdicts_may_have_another_form():
    reply = Reply(text="The first one. [[A]]")
    assert read_answer(reply) is Answer.UNPARSABLE
    assert read_answer(reply, FORMS["brackets"]) is Answer.FIRST
