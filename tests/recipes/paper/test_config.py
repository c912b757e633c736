"""Settings of the paper in miniature: one world, one policy and engine, and what is refused at once."""

from types import SimpleNamespace

import pytest
from ralign.engine.checkpoint.settings import FINISHED, mark_finished, open_folder
from ralign.engine.config.command_line import parse
from ralign.engine.runtime.errors import UserError
from ralign.recipes.paper.config import PaperRun
from ralign.recipes.paper.experiment import PaperExperiment


def _paper(*argv, out="runs"):
    paper = parse(PaperRun(), [*argv, f"out={out}"])
    paper.resolve(1)
    return paper


def test_what_is_both_s_is_handed_down():
    paper = _paper("seed=3", "name=x", "budgets=2,5", "judges.data.world.num_test=300")
    for name, run in (("judges", paper.judges), ("actors", paper.actors)):
        assert (run.folder, run.seed) == (paper.folder / name, 3)
    assert (paper.judges.budgets, paper.judges.num_steps) == ((2, 5), 5)
    # Actors are tested on notes that no judge of theirs was trained on.
    assert paper.actors.data.world == paper.judges.data.world
    assert (paper.actors.data.world.num_test, paper.actors.data.world.seed) == (300, 3)
    paper.resolve(1)  # a second time changes nothing


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["judges.budgets=3"], "differs from budgets=[10, 20, 40, 80]"),
        (["actors.data.world.num_test=300"], "num_test=300 differs from judges.data.world.num_test=512"),
        (["actors.model.num_layers=2"], "actors.model.num_layers=2 differs from judges.model.num_layers=4"),
        (["judges.parallel.dtype=bf16"], "actors.parallel.dtype=fp32 differs from judges.parallel.dtype=bf16"),
        (["actors.kernels.advantages=torch"], "judges.kernels.advantages=auto"),
        (["actors.memory.reserve_gib=1"], "judges.memory.reserve_gib=6.0"),
        (["actors.faults.stall_s=1"], "judges.faults.stall_s=1800.0"),
        (["actors.generator.temperature=0.7"], "temperature=0.7 differs from judges.generator.temperature=1.0"),
        (["actors.data.max_prompt_tokens=193"], "321 tokens, the judges' 320"),
        (["actors.eval.max_new_tokens=129"], "321 tokens, the judges' 320"),
        (["judges.data.train=x.jsonl"], "judges.data.train=x.jsonl"),
        (["actors.algo.num_prompts=0"], "actors: algo.num_prompts must be at least 1"),
        (["judges.algo.advantages=gae", "judges.critic.warmup_steps=2", "budgets=2"], "critic.warmup_steps = 2"),
        (["actors.genrm.model=/some/folder"], "actors.genrm.model=/some/folder"),
        (["actors.genrm.kind=endpoint"], "actors.genrm.kind=endpoint"),
        (["actors.genrm.template=full"], "actors.genrm.template=full differs from judges.data.template=compact"),
        (["actors.algo.num_samples=2"], "circular needs groups of at least 3, got 2"),
        (["actors.actor.value=bradley_terry", "actors.actor.scheme=knockout"], "knockout"),
        (["actors.genrm.max_new_tokens=0"], "actors.genrm.max_new_tokens must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_fail_late_is_refused(overrides, said):
    with pytest.raises(UserError) as refused:
        _paper(*overrides)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_a_judge_in_the_processes_needs_engines_of_one_rank():
    both = [f"{who}.parallel.tensor=2" for who in ("judges", "actors")]
    paper = parse(PaperRun(), both)
    with pytest.raises(UserError, match="actors.genrm.kind=process needs engines of one rank each, got .* 2"):
        paper.resolve(2)


def test_ppo_is_for_actors_alone_or_for_judges_too():
    assert _paper("actors.algo.advantages=gae").actors.has_critic
    assert _paper("judges.algo.advantages=gae").judges.has_critic


def _trained(run, *, finished):
    """A stage's complete checkpoint under the settings, as an earlier run of them left it."""
    open_folder(run)
    (run.folder / "stage" / "checkpoints" / "step00000001").mkdir(parents=True)
    if finished:
        mark_finished(run)


def test_other_budgets_are_another_run(tmp_path):
    _trained(_paper("budgets=1,2", out=tmp_path).judges, finished=False)
    with pytest.raises(UserError, match=r"budgets was \[1, 2\], now \[2\]"):
        open_folder(_paper("budgets=2", out=tmp_path).judges)
    assert "resumes" in open_folder(_paper("budgets=1,2", out=tmp_path).judges)
    mark_finished(_paper("budgets=1,2", out=tmp_path).judges)
    assert "starts over" in open_folder(_paper("budgets=2", out=tmp_path).judges)


def test_actors_go_with_the_judges_that_paid_them(tmp_path):
    def open_both(*argv):
        paper = _paper(*argv, out=tmp_path)
        said = open_folder(paper.judges)
        return said, PaperExperiment._open_actors(SimpleNamespace(paper=paper))

    paper = _paper(out=tmp_path)
    for run in (paper.judges, paper.actors):
        _trained(run, finished=True)
    said = open_both()
    assert all("is complete" in line for line in said)
    assert not (paper.judges.folder / FINISHED).exists()  # until this run ends
    for run in (paper.judges, paper.actors):
        mark_finished(run)
    judges, actors = open_both("budgets=3")
    assert "starts over" in judges and "starts over with its judges" in actors
    assert not (paper.actors.folder / "stage").exists()
    kept = paper.actors.folder.with_name("actors.1")
    assert (kept / "stage" / "checkpoints").is_dir() and (kept / FINISHED).exists()
