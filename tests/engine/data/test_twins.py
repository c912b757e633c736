import pytest
from ralign.engine.config.registry import TWINS
from ralign.engine.data.twins import ORDER
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


def test_a_users_kind_must_be_a_twin_kind(tmp_path):
    (tmp_path / "mine.py").write_text("KIND = len\n")
    with pytest.raises(UserError, match="expected a TwinKind, got <built-in function len>"):
        TWINS.load(f"{tmp_path}/mine.py:KIND")
