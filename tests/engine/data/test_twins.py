from dataclasses import replace

import pytest
from ralign.engine.config.registry import TWINS
from ralign.engine.data.twins import ORDER, TwinKind, own_side, twin_of
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, oracle_judge
from ralign.engine.runtime.errors import UserError


@pytest.fixture(scope="module")
def pairs():
    return build_judgeworld(JudgeWorldConfig(num_train=50, num_warm_start=1, num_dev=1, num_test=1))["train"]


def test_the_twin_in_the_other_order_is_judged_for_the_same_response(pairs):
    for pair in pairs:
        twin = ORDER.make(pair)
        assert twin is not None and ORDER.swaps_sides
        assert (twin.response_A, twin.response_B) == (pair.response_B, pair.response_A)
        assert twin.gt_label != pair.gt_label and twin.gt_judgment == oracle_judge(twin)
        assert ORDER.make(twin) == pair


def test_a_twin_is_checked_and_may_be_made_without_a_golden_judgment(pairs):
    pair = pairs[0]
    assert twin_of(ORDER, pair, "x", reads_golden=True) == ORDER.make(pair)
    unclear = replace(pair, gt_judgment="A man prefers it.")  # a name of a response, or an article
    assert twin_of(ORDER, unclear, "x", reads_golden=True) is None
    twin = twin_of(ORDER, unclear, "x", reads_golden=False)
    assert twin is not None and (twin.response_A, twin.gt_judgment) == (pair.response_B, "")
    same = TwinKind(make=lambda pair: replace(pair, source="other"), why_none="-")
    assert twin_of(same, pair, "x", reads_golden=False) is None  # it looks the same
    no_label = replace(ORDER, swaps_sides=False)
    with pytest.raises(UserError, match=f"x: the twin of '{pair.id}' has the id '{pair.id}' and the label"):
        twin_of(no_label, pair, "x", reads_golden=False)


def test_a_verdict_on_a_twin_names_a_response_of_the_pair():
    assert [own_side(ORDER, verdict) for verdict in ("A", "B", None)] == ["B", "A", None]
    kept = replace(ORDER, swaps_sides=False)
    assert [own_side(kept, verdict) for verdict in ("A", "B", None)] == ["A", "B", None]


def test_a_users_kind_must_be_a_twin_kind(tmp_path):
    (tmp_path / "mine.py").write_text("KIND = len\n")
    with pytest.raises(UserError, match="expected a TwinKind, got <built-in function len>"):
        TWINS.load(f"{tmp_path}/mine.py:KIND")
