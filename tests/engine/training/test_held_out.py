"""A held-out test of all sources, that shares no prompt with training and does not depend on the order of lines."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from ralign.engine.data.overlap import overlap
from ralign.engine.data.pairs import Pair, prompt_text
from ralign.engine.runtime.errors import UserError
from ralign.engine.training.held_out import hold_out

_SOURCES = {"chat": 500, "code": 300, "math": 150, "rare": 50}


def _pair(number, source, prompt, **meta):
    return Pair(
        id=f"p{number}",
        source={"dataset": "made-up", "subset": source},
        conversations=[{"role": "user", "content": prompt}],
        response_A="one",
        response_B="two",
        gt_label="A",
        gt_judgment="",
        meta=meta,
    )


def _prompt(rng):
    return " ".join(str(rng.randrange(10**6)) for _ in range(12))


@pytest.fixture
def pairs():
    """One source after the other, 1,000 pairs; every prompt has from 1 to 3 pairs."""
    rng, found = random.Random(0), []
    for source, num in _SOURCES.items():
        while num:
            size, prompt = min(num, rng.randint(1, 3)), _prompt(rng)
            found += [_pair(len(found) + n, source, prompt) for n in range(size)]
            num -= size
    return found


def _sources(pairs):
    return Counter(pair.source["subset"] for pair in pairs)


def test_every_source_has_its_share_and_every_prompt_one_side(pairs):
    train, test, similar = hold_out(pairs, 200, seed=0)
    assert len(test) == 200 and len(train) == 800 and not similar
    for source, num in _sources(test).items():
        assert abs(num - 200 * _SOURCES[source] / 1000) <= 3
    assert set(_sources(test)) == set(_SOURCES)
    assert not {prompt_text(pair) for pair in train} & {prompt_text(pair) for pair in test}
    assert not overlap([prompt_text(pair) for pair in train], [prompt_text(pair) for pair in test])
    places = {pair.id: place for place, pair in enumerate(pairs)}
    for side in (train, test):
        assert [places[pair.id] for pair in side] == sorted(places[pair.id] for pair in side)


def test_the_seed_and_the_prompts_fix_the_draw_and_the_order_of_lines_does_not(pairs):
    ids = {pair.id for pair in hold_out(pairs, 100, seed=3).test}
    shuffled = random.Random(1).sample(pairs, len(pairs))
    assert {pair.id for pair in hold_out(shuffled, 100, seed=3).test} == ids
    other = {pair.id for pair in hold_out(pairs, 100, seed=4).test}
    assert len(ids & other) < 30  # about 10 by chance


def test_a_given_prompt_id_keeps_pairs_together_whatever_their_turns(pairs):
    marked = [replace(pair, meta={"prompt_id": n // 5}) for n, pair in enumerate(pairs)]
    train, test, _ = hold_out(marked, 100, seed=0)
    assert len(test) == 100
    assert not {pair.meta["prompt_id"] for pair in train} & {pair.meta["prompt_id"] for pair in test}


def test_prompts_that_are_nearly_held_out_are_left_out_of_training(pairs):
    test = hold_out(pairs, 100, seed=0).test
    # The same words in other case and punctuation: another key, and a similarity of 1.
    copies = [_pair(2000 + n, "chat", f"{prompt_text(pair)}!") for n, pair in enumerate(pairs)]
    found = hold_out([*pairs, *copies], 100, seed=0)
    assert found.similar and not overlap(*([prompt_text(pair) for pair in side] for side in found[:2]))
    assert len(found.train) + len(found.test) + len(found.similar) == 2000
    assert len(test) == len(found.test) == 100


def test_a_test_that_leaves_nothing_to_train_on_is_refused(pairs):
    for few, num in ((pairs[:5], 5), ([_pair(n, "chat", "Same?") for n in range(9)], 4)):
        with pytest.raises(UserError, match=f"cannot hold out {num} of {len(few)} pairs"):
            hold_out(few, num, seed=0)
    alike = [_pair(n, "chat", "What is the time in this town now, please" + "?" * n) for n in range(9)]
    with pytest.raises(UserError, match="of the others 5 have nearly the prompts"):
        hold_out(alike, 4, seed=0)


def test_many_sources_of_one_pair_are_drawn_without_an_order():
    rng = random.Random(0)
    pairs = [_pair(n, f"site {n:04d}", _prompt(rng)) for n in range(1000)]
    places = [int(pair.id[1:]) for pair in hold_out(pairs, 100, seed=0).test]
    assert len(places) == 100 and 400 < sum(places) / 100 < 600
