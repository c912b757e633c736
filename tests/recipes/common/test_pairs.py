import pytest
from ralign.engine.config.run import GenRMRun
from ralign.engine.data.pairs import prompt_text, write_pairs
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.pairs import train_and_held_out


def test_pairs_of_a_file_are_drawn_and_those_near_the_test_are_said(tmp_path, capfd):
    world = build_judgeworld(JudgeWorldConfig(num_train=90, num_warm_start=1, num_dev=1, num_test=1))
    path = tmp_path / "pairs.jsonl"
    write_pairs(path, world["train"])
    run = GenRMRun()
    run.data.train, run.eval.num_pairs = str(path), 20
    train, test = train_and_held_out(run)
    said = capfd.readouterr().err
    num_near = 90 - len(train) - len(test)
    assert len(test) == 20 and [pair.id for pair in test] != [pair.id for pair in world["train"][:20]]
    assert not {prompt_text(pair) for pair in train} & {prompt_text(pair) for pair in test}
    assert (f"{num_near} of 90 pairs left out of training" in said) == (num_near > 0)
    run.seed = 1
    assert train_and_held_out(run)[1] != test
    run.eval.num_pairs = 90
    with pytest.raises(UserError, match="has 90 pairs, eval.num_pairs=90"):
        train_and_held_out(run)


def test_judgeworld_has_its_own_test():
    run = GenRMRun()
    run.data.world = JudgeWorldConfig(num_train=5, num_warm_start=1, num_dev=1, num_test=4)
    train, test = train_and_held_out(run)
    assert [pair.meta["split"] for pair in (train[0], test[0])] == ["train", "unbiased"]
