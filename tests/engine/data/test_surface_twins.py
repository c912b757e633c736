"""Twins of any pairs: content stays, the surface is exchanged, and there is none where the surface may decide."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ralign.engine.config.registry import TWINS
from ralign.engine.data.markup import Masked, num_marks, with_bullets, without_marks, words
from ralign.engine.data.pairs import Pair
from ralign.engine.data.surface_twins import _CLOSINGS, MARKDOWN, PADDING, REORDER

_CODE = "```python\n- x = 2 ** 3 ** 4  # **not bold**\n* y\n```"
_PROTECTED = (
    _CODE,
    "~~~\n# title\n~~~",
    "| a | **b** |\n|---|---|\n| - c | 1 |",
    "$$\n- x * y * z\n$$",
    "\\[ a \\\\ - b \\]",
    "    - indented code is code *only* before a list",
)
_INLINE = ("`**x**`", "[*a*](http://b.c/d_e)", "https://x.y/a-*b*", "$a * b * c$", "<b>")
_WORDS = (
    "alpha",
    "Beta",
    "gamma",
    "Delta",
    "42",
    "e.g.",
    "Mr. Epsilon",
    "2*3*4",
    "2**3**4",
    "a_b",
    "zeta-eta",
)

_phrases = st.lists(st.sampled_from([*_WORDS, *_INLINE]), min_size=1, max_size=6).map(" ".join)
_lines = st.one_of(
    _phrases.map(lambda text: f"The {text}."),
    st.lists(_phrases, min_size=2, max_size=4).map(lambda parts: " ".join(f"Then {x}." for x in parts)),
    _phrases.map(lambda text: f"- {text}"),
    _phrases.map(lambda text: f"  * **{text}**"),
    _phrases.map(lambda text: f"## {text}"),
    _phrases.map(lambda text: f"Some **bold {text}** and *italic words* here"),
    _phrases.map(lambda text: f"1. {text}"),
    st.sampled_from(_PROTECTED),
    st.just(""),
)
_texts = st.lists(_lines, min_size=1, max_size=7).map("\n".join).filter(lambda text: text.strip() != "")
_any_text = st.text(st.sampled_from("aB .-*#_`|$\\[]()<>1:\n\t{}!"), max_size=60)


def make_pair(
    a: str, b: str, prompt: str = "Pass on this note.", golden: str = "A is right. \\boxed{A}"
) -> Pair:
    turns = [{"role": "user", "content": prompt}]
    return Pair(
        id="p", source="test", conversations=turns, response_A=a, response_B=b, gt_label="A", gt_judgment=golden
    )  # fmt: skip


def responses(pair: Pair) -> tuple[str, str]:
    return pair.response_A, pair.response_B


@settings(max_examples=150, deadline=None)
@given(_texts, _texts)
def test_markdown_changes_side_and_words_and_code_stay(a, b):
    pair = make_pair(a, b)
    twin = MARKDOWN.make(pair)
    if twin is None:
        return
    before, after = map(num_marks, responses(pair)), map(num_marks, responses(twin))
    (a0, b0), (a1, b1) = before, after
    assert (a0 > b0 and a1 < b1) or (a0 < b0 and a1 > b1)
    for old, new in zip(responses(pair), responses(twin), strict=True):
        assert words(new) == words(old)
        assert Masked(new).parts == Masked(old).parts
    assert (twin.id, twin.gt_label, twin.gt_judgment) == (pair.id, pair.gt_label, pair.gt_judgment)
    assert MARKDOWN.make(pair) == twin
    again = MARKDOWN.make(twin)
    if again is not None:  # the marks are where they were
        (a2, b2) = map(num_marks, responses(again))
        assert (a2 > b2) == (a0 > b0)


@settings(max_examples=150, deadline=None)
@given(st.one_of(_texts, _any_text))
def test_stripping_is_idempotent_and_undoes_bullets(text):
    plain = without_marks(text)
    if plain is None:
        return
    assert num_marks(plain) == 0 and without_marks(plain) == plain
    assert Masked(plain).parts == Masked(text).parts
    marked = with_bullets(plain)
    if marked is not None:
        bare = without_marks(marked)
        assert bare is not None and num_marks(bare) == 0 < num_marks(marked)
        assert words(bare) == words(marked) == words(plain)


@settings(max_examples=150, deadline=None)
@given(_texts, _texts)
def test_padding_moves_neutral_sentences_alone_towards_the_shorter(a, b):
    pair = make_pair(a, b)
    twin = PADDING.make(pair)
    if twin is None:
        return
    is_a_longer = len(a) > len(b)
    longer, shorter = (
        (twin.response_A, twin.response_B) if is_a_longer else (twin.response_B, twin.response_A)
    )
    old_longer, old_shorter = (a, b) if is_a_longer else (b, a)
    assert old_longer.startswith(longer) and len(shorter) > len(old_shorter)
    rest = shorter.removeprefix(old_shorter.rstrip())
    for closing in _CLOSINGS:
        rest = rest.replace(closing, "", 1)
    assert not rest.strip()
    if len(old_longer) - len(old_shorter) < 200:  # less than all closings together
        assert len(shorter) > len(longer)
    for old, new in zip(responses(pair), responses(twin), strict=True):
        assert Masked(new).parts == Masked(old).parts
    assert PADDING.make(pair) == twin


@settings(max_examples=150, deadline=None)
@given(_texts, _texts)
def test_reordering_is_an_involution_that_keeps_every_line_or_sentence(a, b):
    pair = make_pair(a, b)
    twin = REORDER.make(pair)
    if twin is None:
        return
    assert twin != pair and REORDER.make(twin) == pair
    for old, new in zip(responses(pair), responses(twin), strict=True):
        assert sorted(words(new)) == sorted(words(old)) and len(new) == len(old)
        assert sorted(Masked(new).parts) == sorted(Masked(old).parts)


@settings(max_examples=150, deadline=None)
@given(_any_text, _any_text)
def test_any_text_is_taken(a, b):
    for kind in (MARKDOWN, PADDING, REORDER):
        twin = kind.make(make_pair(a, b))
        if twin is not None:
            assert responses(twin) != (a, b)


def test_markdown_is_exchanged():
    twin = MARKDOWN.make(
        make_pair("# Answer\n\n- **One** is 1\n- Two is 2\n\n" + _CODE, "One is 1. Two is 2.")
    )
    assert twin is not None
    assert twin.response_A == "Answer\n\nOne is 1\nTwo is 2\n\n" + _CODE
    assert twin.response_B == "- One is 1.\n- Two is 2."
    single = MARKDOWN.make(make_pair("*Yes*, it is.", "No, e.g. Mr. Smith says no."))
    assert single is not None and responses(single) == ("Yes, it is.", "**No, e.g. Mr. Smith says no.**")


def test_padding_makes_the_shorter_response_the_longer():
    twin = PADDING.make(make_pair("Oslo is the capital. Hope this helps!", "Bergen is the capital."))
    assert twin is not None
    assert responses(twin) == ("Oslo is the capital.", "Bergen is the capital. Hope this helps!")
    twin = PADDING.make(make_pair("Oslo is the capital.", "Bergen is the capital of it."))
    assert twin is not None and twin.response_A == "Oslo is the capital. I hope this helps."


def test_lists_and_free_sentences_are_reversed():
    twin = REORDER.make(make_pair("Facts:\n- Red\n- Blue\n\nBye", "Ann is 3. Bob is 4."))
    assert twin is not None
    assert responses(twin) == ("Facts:\n- Blue\n- Red\n\nBye", "Bob is 4. Ann is 3.")


@pytest.mark.parametrize(
    ("kind", "a", "b", "fields"),
    [
        (MARKDOWN, "- x is 1", "- y is 1", {}),  # as many marks
        (MARKDOWN, "- x is 1", "x is 1. y is 2.", {"prompt": "Give me a bulleted list."}),
        (MARKDOWN, "- x is 1", "x is 1. y is 2.", {"golden": "A has the clearer formatting. \\boxed{A}"}),
        (MARKDOWN, "- x is 1", "for (;;) {\n  run();\n}", {}),  # code without a fence
        (MARKDOWN, "- x is 1", "1. One.\n2. Two.", {}),
        (PADDING, "42", "The answer is 42, I am sure.", {}),
        (PADDING, "Oslo is the capital.", "It is Bergen for sure.", {"prompt": "Answer in 5 words."}),
        (PADDING, "Oslo is the capital.", "Here it is:\n```\nprint(1)\nprint(2)", {}),  # cut off in code
        (REORDER, "1. Mix.\n2. Bake.", "1. Bake.\n2. Mix.", {}),
        (REORDER, "- Mix\n- Bake\n\n```\nmix()\nbake()\n```", "- 1. Mix\n- 2. Bake", {}),
        (REORDER, "- Mix\n- Then bake", "Ann is 3. She is tall.", {}),
        (REORDER, "A dog barks. The dog is old.", "- One\n  more of it\n- Two", {}),
        (REORDER, "Ann is 3. Bob is 4.", "Bob is 4. Ann is 3.", {"prompt": "Sort them by age."}),
    ],
)
def test_no_twin_where_none_is_honest(kind, a, b, fields):
    assert kind.make(make_pair(a, b, **fields)) is None


def test_the_kinds_are_registered_and_say_why_a_pair_has_none():
    for name, kind in (("markdown", MARKDOWN), ("padding", PADDING), ("reorder", REORDER)):
        assert TWINS.load(name) is kind and re.match(r"[a-z]", kind.why_none) and not kind.swaps_sides
