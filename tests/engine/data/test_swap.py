import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.data.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.data.pairs import Pair
from ralign.engine.data.swap import swap_names, swap_sides
from ralign.engine.judging.metarm import Outcome, RuleMetaRM, decisive_factors
from ralign.engine.judging.verdicts import parse_verdict

# text -> the text about the same responses in the other order
RENAMED = {
    "Response A is better than Response B. \\boxed{A}": "Response B is better than Response A. \\boxed{B}",
    "Assistant 1's answer beats assistant 2's.": "Assistant 2's answer beats assistant 1's.",
    "Output (a) is right, Output (b) is not.": "Output (b) is right, Output (a) is not.",
    "Responses A and B differ; so do Assistants 1 and 2.": "Responses B and A differ; so do Assistants 2 and 1.",
    "The first response errs. Second answer: fine.": "The second response errs. First answer: fine.",
    "[[B]] since **Response B** wins": "[[A]] since **Response A** wins",
    "A is wrong; B gives the year. I prefer B to A.": "B is wrong; A gives the year. I prefer A to B.",
    "A's tone is dry, and B's is not.": "B's tone is dry, and A's is not.",
    "A > B": "B > A",
    "response_A lists two, Model B three": "response_B lists two, Model A three",
}
UNTOUCHED = [
    "A better answer would say more.",
    "A serious mistake; a thesis; an A-level essay.",
    "It mentions vitamin B, plan A, hepatitis B and Sagittarius A.",
    "It cites A Tale of Two Cities and the result of A Christmas Carol.",
    "The sum is 1, the answer 2 is right; output 12 lines; model 2.5 GHz",
    "U.S.A. and B.C. and C-A-B and AB",
]


@pytest.mark.parametrize("text", RENAMED)
def test_names_of_the_responses_are_exchanged(text):
    swapped, num_names = swap_names(text)
    assert swapped == RENAMED[text] and num_names > 0
    assert swap_names(swapped) == (text, num_names)


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_only_looks_like_a_name_stays(text):
    assert swap_names(text) == (text, 0)


_PIECES = [
    "Response ",
    "Assistant ",
    "Output ",
    "A",
    "B",
    "1",
    "2",
    "(a)",
    "(b)",
    " and ",
    " is",
    " than ",
    ". ",
]
_PIECES += [
    "\\boxed{A}",
    "[[B]]",
    "first answer",
    "'s",
    " gives",
    " serious",
    "vitamin ",
    " ",
    ", ",
    "\n",
    "*",
]


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.lists(st.sampled_from(_PIECES), max_size=12).map("".join), st.text(max_size=60)))
def test_swapping_twice_gives_the_text_back(text):
    swapped, num_names = swap_names(text)
    assert swap_names(swapped) == (text, num_names)


def test_a_swapped_pair_says_the_same_of_the_same_responses():
    pair = Pair(
        id="x",
        source="s",
        conversations=[{"role": "user", "content": "Is A a letter? Response A?"}],
        response_A="Response A says yes",
        response_B="no",
        gt_label="A",
        gt_judgment="Response B is wrong. \\boxed{A}",
        meta={"cue_side": "B", "left_side": "inner", "reviews": ["A is right"], "grade": "A"},
    )
    swapped = swap_sides(pair)
    assert (swapped.response_A, swapped.response_B, swapped.gt_label) == ("no", "Response A says yes", "B")
    assert swapped.gt_judgment == "Response A is wrong. \\boxed{B}"
    assert swapped.conversations == pair.conversations and swapped.id == pair.id
    expected = {"cue_side": "A", "left_side": "inner", "reviews": ["B is right"], "grade": "A"}
    assert swapped.meta == expected
    assert swap_sides(swapped) == pair


def test_judgeworld_s_golden_judgments_follow_the_swap():
    for pair in build_judgeworld(JudgeWorldConfig(num_train=50, num_warm_start=50, num_dev=50, num_test=50))[
        "dev"
    ]:
        swapped = swap_sides(pair)
        assert parse_verdict(swapped.gt_judgment) == swapped.gt_label != pair.gt_label
        (before,), (after,) = decisive_factors(pair.gt_judgment), decisive_factors(swapped.gt_judgment)
        assert (before.item, before.should_be) == (after.item, after.should_be) and before.side != after.side
        assert RuleMetaRM().judge(swapped.gt_judgment, pair.gt_judgment) is Outcome.INCORRECT
        assert swap_sides(swapped) == pair
