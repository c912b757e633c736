import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.data.pairs import Pair
from ralign.engine.data.side_names import speaks_of
from ralign.engine.data.swap import rename, swap_all, swap_names, swap_sides, why_not_swapped
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.judging.metarm import Outcome, RuleMetaRM, decisive_factors

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
    # marks around a name
    "**A** is better than **B**. \\boxed{A}": "**B** is better than **A**. \\boxed{B}",
    "*A* is longer, __B__ is shorter, `A` wins.": "*B* is longer, __A__ is shorter, `B` wins.",
    "_A_ is dry. **A is better than B**": "_B_ is dry. **B is better than A**",
    "\"A\" is better; I prefer “A” to 'B'.": "\"B\" is better; I prefer “B” to 'A'.",
    '**Response** **A** errs, Response "B" and (Response *A*) too': (
        '**Response** **B** errs, Response "A" and (Response *B*) too'
    ),
    "**Output** (a) is right, and so is output **(b)**.": "**Output** (b) is right, and so is output **(a)**.",
    "I think A's answer (A) beats B.": "I think B's answer (B) beats A.",
    "**A**'s code runs; `B`'s does not.": "**B**'s code runs; `A`'s does not.",
    # nouns
    "Option A is terse; Option B rambles.": "Option B is terse; Option A rambles.",
    "Solution A is O(n), solution B quadratic.": "Solution B is O(n), solution A quadratic.",
    "Version 1 keeps the tone. Version 2 does not.": "Version 2 keeps the tone. Version 1 does not.",
    "Chatbot A is kind, chatbot B curt.": "Chatbot B is kind, chatbot A curt.",
    "Assistant One refuses, Assistant Two obeys.": "Assistant Two refuses, Assistant One obeys.",
    "The first option has a source; the second option has none.": (
        "The second option has a source; the first option has none."
    ),
    "The first and second responses agree.": "The second and first responses agree.",
    "The A response is short, the B answer long.": "The B response is short, the A answer long.",
    "Assistant 1, like Response A, errs.": "Assistant 2, like Response B, errs.",
    # names and articles side by side
    "A better answer cites. A is vague; B cites.": "A better answer cites. B is vague; A cites.",
    "A detailed table helps: A provided the table, B added a map.": (
        "A detailed table helps: B provided the table, A added a map."
    ),
    'It opens with "A good start", which A lacks.': 'It opens with "A good start", which B lacks.',
    "Dry as dust.\nA gives none.\nB gives two.": "Dry as dust.\nB gives none.\nA gives two.",
    "A, however, cites a study; B (the longer one) outperforms A in style.": (
        "B, however, cites a study; A (the longer one) outperforms B in style."
    ),
    # forms of a verdict
    "My final verdict is [[A>>B]]": "My final verdict is [[B>>A]]",
    "Winner: **B**": "Winner: **A**",
    "| A | 8 |\n| B | 6 |": "| B | 8 |\n| A | 6 |",
    "- A gives one\n- B gives two": "- B gives one\n- A gives two",
    "\\boxed{\\text{A}}": "\\boxed{\\text{B}}",
    # what was said first stays first
    "Response A is long, Response B short; the latter is better.": (
        "Response B is long, Response A short; the latter is better."
    ),
}
UNTOUCHED = [
    "A better answer would say more.",
    "A serious mistake; a thesis; an A-level essay.",
    "It mentions vitamin B, plan A, hepatitis B and Sagittarius A.",
    "It cites A Tale of Two Cities and the result of A Christmas Carol.",
    "The sum is 1, the answer 2 is right; output 12 lines; model 2.5 GHz",
    "U.S.A. and B.C. and C-A-B and AB",
    "It got an A; B minor is a key; B cells and B vitamins; A/B testing; f(A), $B$, A+",
    "It gives a second answer, and its first answer was right.",
    "A hands-on guide. A series of notes. A famous line. A concise reply.",
    'The phrase "A knight with a gun" is odd.',
]
# text -> how many words in it may name a response, and are left as they are
DOUBTFUL = {
    "The former is better.": 1,
    "The first one is better, and the second is wrong.": 2,
    "The first, shorter response wins.": 1,
    "Response a is fine, response b is not.": 2,
    "Response A takes option B. Response B takes option A.": 2,
    "Response A prints output 1, Response B prints it twice.": 1,
    "Option A is better than option C.": 1,
    "Output (a) is right while (b) is not.": 1,
    "Essay-like B lists more.": 1,
    "A responded kindly.": 1,
    "B better covers it.": 1,
    "B response is good": 1,
    "A = B holds": 2,
    "From A to B it takes an hour.": 2,
    "A. Accuracy: fine.\nB. Style: fine.": 2,
    "Clarity: A, depth: B": 2,
    "Why A Is Right": 1,
    "A/B is close": 2,
    "回答A更好": 1,
    "R1 is right and #2 is wrong": 2,
    "The left response is better.": 1,
}


@pytest.mark.parametrize("text", RENAMED)
def test_names_of_the_responses_are_exchanged(text):
    swapped, num_names = swap_names(text)
    assert swapped == RENAMED[text] and num_names > 0
    assert swap_names(swapped) == (text, num_names)


@pytest.mark.parametrize("text", RENAMED)
def test_a_text_that_was_renamed_leaves_no_doubt(text):
    assert not rename(text).doubts


@pytest.mark.parametrize("text", UNTOUCHED)
def test_what_only_looks_like_a_name_stays(text):
    assert swap_names(text) == (text, 0) and not rename(text).doubts


@pytest.mark.parametrize("text", DOUBTFUL)
def test_what_may_be_a_name_is_left_and_told(text):
    doubts = rename(text).doubts
    assert len(doubts) == DOUBTFUL[text] and all(doubt in " ".join(text.split()) for doubt in doubts)


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
    '"',
    "_",
    "Option ",
    "the former",
    "from ",
    "/",
    ": ",
    "Two",
    "provided the",
    "good ",
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


def made(golden, *, prompt="Where is Oslo?", response_a="Norway", **fields):
    turns = [{"role": "user", "content": prompt}]
    responses = {"response_A": response_a, "response_B": "Peru", "gt_label": "A"}
    return Pair(**({"id": "x", "source": "s"} | fields), conversations=turns, gt_judgment=golden, **responses)


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (made("Response B errs. \\boxed{A}"), None),
        (made(""), None),
        (made("<think>the former?</think>A is right, B is wrong. \\boxed{A}"), None),
        (made("This one is right. \\boxed{A}"), "names no response outside its verdict"),
        (made("[[A]]"), "names no response outside its verdict"),
        (made("Response B errs, the first one is fine."), "may name a response in: .*the first one"),
        (
            made("B errs. \\boxed{A}", prompt="A) Oslo\nB) Lima"),
            "names a lone letter, which the prompt or a response uses",
        ),
        (
            made("B errs. \\boxed{A}", response_a="A and B are sets"),
            "names a lone letter, which the prompt or a response uses",
        ),
        (
            made("Option B errs.", prompt="Take option A or option B"),
            "names a option, which the prompt or a response uses",
        ),
        (
            made("Option B errs.", prompt="A) Oslo\nB) Lima"),
            "names a option, which the prompt or a response uses",
        ),
        (made("Response B errs.", prompt="A) Oslo\nB) Lima"), None),
        (
            made("Response B errs.", response_a="Response A: yes"),
            "names a response, which the prompt or a response uses",
        ),
    ],
)
def test_a_judgment_that_may_name_the_wrong_side_after_a_swap_is_told(pair, reason):
    found = why_not_swapped(pair)
    assert found is None if reason is None else re.match(reason, found)


def test_swapping_all_leaves_out_what_is_not_sure_and_says_why():
    sure, unsure = made("Response B errs.", id="sure"), made("The first one is right.", id="unsure")
    swapped, left_out = swap_all([unsure, sure, sure])
    assert swapped == [swap_sides(sure)] * 2
    assert left_out == {"unsure": why_not_swapped(unsure)}


def test_a_text_that_is_judged_may_have_letters_of_its_own():
    assert speaks_of("vitamin B", "bare") and not speaks_of("A-B, AB and A good one", "bare")
    assert speaks_of("Output: B", "output") and speaks_of("output (b)", "output")
    assert not speaks_of("the output is big", "output")


def test_judgeworld_s_golden_judgments_follow_the_swap():
    for pair in build_judgeworld(JudgeWorldConfig(num_train=50, num_warm_start=50, num_dev=50, num_test=50))[
        "dev"
    ]:
        swapped = swap_sides(pair)
        assert verdict_of(swapped.gt_judgment) == swapped.gt_label != pair.gt_label
        (before,), (after,) = decisive_factors(pair.gt_judgment), decisive_factors(swapped.gt_judgment)
        assert (before.item, before.should_be) == (after.item, after.should_be) and before.side != after.side
        assert RuleMetaRM().outcome(swapped.gt_judgment, pair.gt_judgment) is Outcome.INCORRECT
        assert swap_sides(swapped) == pair


@pytest.mark.parametrize("text", ["Response  A A's", "Response B A's, A B's"])
def test_a_letter_after_a_letter_is_read_alike_whichever_they_are(text):
    swapped, num_names = swap_names(text)
    assert swapped != text and swap_names(swapped) == (text, num_names)
