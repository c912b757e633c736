"""A GenRM's RL task with twins: each pair is followed by its twin, and pairs without one are left out."""

from types import SimpleNamespace

import pytest
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.registry import TWINS
from ralign.engine.config.run import DataConfig, GenRMRun
from ralign.engine.data.examples import Example
from ralign.engine.data.pairs import Pair
from ralign.engine.data.swap import swap_sides
from ralign.engine.data.twins import TwinKind
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.runtime.errors import UserError
from ralign.engine.training import genrm as genrm_module
from ralign.engine.training.genrm import GenRM


def make_pair(number: int, golden: str = "The first response is right. \\boxed{A}", **fields) -> Pair:
    standard = {"response_A": f"yes {number}", "response_B": f"no {number}", "gt_label": "A"}
    turns = [{"role": "user", "content": f"question {number}"}]
    return Pair(
        id=f"p{number}",
        source="test",
        conversations=turns,
        gt_judgment=golden,
        **(standard | fields),
    )


def with_signs(pair: Pair) -> Pair | None:
    """Exclamation marks instead of nothing; every third pair has no twin."""
    number = int(pair.id[1:])
    if number % 3 == 2:
        return None
    return make_pair(number, response_A=f"{pair.response_A}!", response_B=f"{pair.response_B}!")


KINDS = {
    "signs": TwinKind(make=with_signs, why_none="every third has none"),
    "swapped_signs": TwinKind(
        make=lambda pair: None if (twin := with_signs(pair)) is None else swap_sides(twin),
        why_none="every third has none",
        swaps_sides=True,
    ),
    "no_label": TwinKind(make=swap_sides, why_none="-"),
    "no_id": TwinKind(make=lambda pair: make_pair(9), why_none="-"),
    "nothing": TwinKind(make=lambda pair: None, why_none="nothing has one"),
}


@pytest.fixture
def make_genrm(one_rank, monkeypatch):
    for name, kind in KINDS.items():
        TWINS.register(name, kind)

    def encode(pairs, tokenizer, template, limit, *, chat):
        """Prompts are the texts themselves."""
        fitting = [pair for pair in pairs if len(pair.response_A) <= limit]
        examples = [Example(pair=pair, prompt_ids=[pair.response_A]) for pair in fitting]
        return examples, len(pairs) - len(fitting)

    monkeypatch.setattr(genrm_module, "encode", encode)

    def make(partner, metarm=None, max_prompt_tokens=100):
        said = []
        session = SimpleNamespace(
            tokenizer=None,
            progress=SimpleNamespace(say=said.append),
            generator=SimpleNamespace(replicas=one_rank),
        )
        run = GenRMRun(
            algo=AlgoConfig(partner=partner, reward="label"),
            data=DataConfig(max_prompt_tokens=max_prompt_tokens),
        )
        return GenRM(session, run, metarm), said

    yield make
    for name in KINDS:
        TWINS.unregister(name)


@pytest.mark.parametrize("kind", ["signs", "swapped_signs"])
def test_each_pair_is_followed_by_its_twin_and_pairs_without_one_are_counted(make_genrm, kind):
    genrm, said = make_genrm(kind, RuleMetaRM())
    examples = genrm.examples([make_pair(n) for n in range(8)])
    found = [example.pair for example in genrm.task(examples).examples]
    assert [pair.id for pair in found] == [f"p{n}" for n in (0, 0, 1, 1, 3, 3, 4, 4, 6, 6, 7, 7)]
    assert found[::2] == [make_pair(n) for n in (0, 1, 3, 4, 6, 7)]
    assert found[1::2] == [KINDS[kind].make(pair) for pair in found[::2]]
    assert {pair.gt_label for pair in found[1::2]} == {"B" if KINDS[kind].swaps_sides else "A"}
    assert said == ["2 of 8 pairs left out: every third has none"]


def test_without_a_partner_a_pair_is_alone(make_genrm):
    genrm, said = make_genrm("none")
    examples = genrm.examples([make_pair(n) for n in range(3)])
    assert genrm.task(examples).examples == examples and not said


def test_a_pair_whose_twin_is_too_long_is_left_out(make_genrm):
    genrm, said = make_genrm("signs", max_prompt_tokens=6)
    pairs = [make_pair(0), make_pair(1, response_A="yes  1"), make_pair(3)]
    found = [example.pair.id for example in genrm.task(genrm.examples(pairs)).examples]
    assert found == ["p0", "p0", "p3", "p3"]
    assert said == ["1 of 3 pairs left out: over data.max_prompt_tokens=6"]


def test_without_a_metarm_a_golden_judgment_need_not_fit_the_twin(make_genrm):
    vague = "It is right, the other is not. \\boxed{A}"
    pairs = [make_pair(0), make_pair(1, vague)]
    genrm, said = make_genrm("order", RuleMetaRM())
    task = genrm.task(genrm.examples(pairs))
    assert [example.pair.id for example in task.examples] == ["p0", "p0"]
    assert said == [f"1 of 2 pairs left out: {TWINS.load('order').why_none}"]
    genrm, said = make_genrm("order")
    found = [example.pair for example in genrm.task(genrm.examples(pairs)).examples]
    assert [(pair.id, pair.gt_label, pair.response_A) for pair in found] == [
        ("p0", "A", "yes 0"), ("p0", "B", "no 0"), ("p1", "A", "yes 1"), ("p1", "B", "no 1"),
    ]  # fmt: skip
    assert found[0].gt_judgment and found[1].gt_judgment and not said


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nothing", "algo.partner=nothing: 2 of 2 pairs left out: nothing has one"),
        (
            "no_label",
            "algo.partner=no_label: the twin of 'p0' has the id 'p0' and the label B, expected the same id and A",
        ),
        (
            "no_id",
            "algo.partner=no_id: the twin of 'p0' has the id 'p9' and the label A, expected the same id and A",
        ),
    ],
)
def test_twins_that_cannot_be_used_end_the_run(make_genrm, kind, message):
    genrm, _ = make_genrm(kind)
    with pytest.raises(UserError) as refused:
        genrm.task(genrm.examples([make_pair(n) for n in range(2)]))
    assert str(refused.value) == message


def test_a_users_kind_of_twins_is_a_file(make_genrm, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from ralign.engine.data.twins import TwinKind\n"
        "LOUD = TwinKind(make=lambda p: replace(p, response_A=p.response_A.upper()), why_none='-')\n"
    )
    genrm, _ = make_genrm(f"{tmp_path}/mine.py:LOUD")
    found = [example.pair.response_A for example in genrm.task(genrm.examples([make_pair(0)])).examples]
    assert found == ["yes 0", "YES 0"]
