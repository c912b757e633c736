"""`ralign-eval run --twins`: flip rates of a judge of the surface, an oracle and a coin; files, resume, budget."""

import json
import random

import pytest
from ralign.engine.config.registry import TWINS
from ralign.engine.data.pairs import BadLine, Pair, write_pairs
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.worlds.config import JudgeWorldConfig
from ralign.engine.data.worlds.judgeworld import build_judgeworld, cue_judge
from ralign.engine.evaluation.baselines import cue_sides
from ralign.engine.evaluation.cli import _main
from ralign.engine.evaluation.records import parse_judged
from ralign.engine.evaluation.twins import make_twins, read_kinds
from ralign.engine.runtime.errors import UserError

NUM_PAIRS = 40
COMPACT = load_template("compact")
KINDS = ("cues", "markdown", "padding", "reorder", "order")
ALL = ",".join(KINDS)


@pytest.fixture
def pairs(tmp_path) -> list[Pair]:
    world = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=NUM_PAIRS, num_test=1))
    write_pairs(tmp_path / "dev.jsonl", world["dev"])
    return world["dev"]


@pytest.fixture
def prompts(pairs):
    """What a judge may be shown -> its pair."""
    kinds = {name: TWINS.load(name) for name in KINDS}
    twins = make_twins(kinds, pairs, "--twins")
    shown = [*pairs, *(twin for of_kind in twins.values() for twin in of_kind.values())]
    return {render(COMPACT, pair): pair for pair in shown}


def oracle(pair):
    return pair.gt_judgment


def coin(pair):
    side = random.Random(pair.response_A + pair.response_B).choice("AB")
    return f"\\boxed{{{side}}}"


def run(tmp_path, server, *more, out="out", twins=ALL):
    command = ["run", "--pairs", f"{tmp_path}/dev.jsonl", "--model", f"endpoint:{server.url}#judge"]
    command += ["--metarm", "rule", "--template", "compact", "--out", f"{tmp_path}/{out}", "--draws", "50"]
    _main([*command, "--retries", "0", *(["--twins", twins] if twins else []), *more])
    return summary_of(tmp_path / out / "report")["models"]["judge"]["dev"]


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


def judged_file(tmp_path, out="out"):
    return tmp_path / out / "judgments" / "judge" / "dev.jsonl"


def test_an_oracle_never_flips_and_a_judge_of_the_cue_flips_with_it(tmp_path, prompts, serve):
    server = serve(lambda model, prompt: oracle(prompts[prompt]))
    result = run(tmp_path, server, out="oracle")
    assert set(result["flip_rate"]) == {*KINDS}
    for rate in result["flip_rate"].values():
        assert rate["value"] == 0 < rate["high"] and rate["num_pairs"] == NUM_PAIRS
        assert rate["num_without_verdict"] == rate["num_without_twin"] == 0
    assert result["worst_group_l_acc"]["value"] == 1
    server = serve(lambda model, prompt: cue_judge(prompts[prompt]))
    result = run(tmp_path, server, out="cue")
    rates = {kind: rate["value"] for kind, rate in result["flip_rate"].items()}
    assert rates == {"cues": 1, "markdown": 1, "padding": 0, "reorder": 0, "order": 0}
    assert result["flip_rate"]["cues"]["low"] < 1
    assert result["worst_group_l_acc"]["value"] == 0 and result["l_acc"]["value"] > 0.9
    assert 0 < result["num_worst_group"] <= NUM_PAIRS // 10


def test_a_coin_flips_in_half_of_the_pairs(tmp_path, prompts, serve):
    server = serve(lambda model, prompt: coin(prompts[prompt]))
    result = run(tmp_path, server)
    pooled = [result["flip_rate"][kind]["value"] for kind in KINDS]
    assert 0.3 < sum(pooled) / len(pooled) < 0.7
    assert all(rate["low"] <= rate["value"] <= rate["high"] for rate in result["flip_rate"].values())


def test_twins_are_asked_greedily_once_and_the_file_has_their_verdicts(tmp_path, pairs, prompts, serve):
    server = serve(lambda model, prompt: cue_judge(prompts[prompt]))
    result = run(tmp_path, server, twins="cues,order")
    num_asked = server.asked.total()
    assert num_asked == 4 * NUM_PAIRS  # sampled, greedy, and two twins
    assert server.temperatures == {0.4: NUM_PAIRS, 0.0: 3 * NUM_PAIRS}
    before = judged_file(tmp_path).read_text()
    for pair, row in zip(pairs, map(json.loads, before.splitlines()), strict=True):
        own, other = ("A", "B") if pair.response_A.startswith("- ") else ("B", "A")
        assert row["model_pred_greedy"] == own and row["gt_judgment"] == pair.gt_judgment
        assert row["model_pred_twins"] == {"cues": other, "order": own}  # by the response that it names
    assert run(tmp_path, server, twins="cues,order") == result and server.asked.total() == num_asked
    assert judged_file(tmp_path).read_text() == before
    run(tmp_path, server, twins="cues,order,reorder")  # the new kind alone
    assert server.asked.total() == num_asked + NUM_PAIRS
    _main(["score", f"judge={judged_file(tmp_path)}", "--out", f"{tmp_path}/scored", "--draws", "50"])
    scored = summary_of(tmp_path / "scored")["models"]["judge"]["dev"]["flip_rate"]
    assert {kind: scored[kind] for kind in ("cues", "order")} == result["flip_rate"]


def test_a_greedy_judge_answers_to_the_pair_once(tmp_path, prompts, serve):
    server = serve(lambda model, prompt: oracle(prompts[prompt]))
    result = run(tmp_path, server, "--temperature", "0", twins="cues")
    assert server.asked.total() == 2 * NUM_PAIRS and result["flip_rate"]["cues"]["value"] == 0


def test_failed_calls_and_missing_verdicts_are_counted_and_calls_repeated(
    tmp_path, pairs, prompts, serve, capsys
):
    twins = make_twins({"cues": TWINS.load("cues")}, pairs, "--twins")["cues"]
    failing = {render(COMPACT, twin) for twin in list(twins.values())[:5]}
    silent = {render(COMPACT, twin) for twin in list(twins.values())[5:8]}
    is_broken = True

    def answer(model, prompt):
        if prompt in failing and is_broken:
            return 500
        return "I cannot tell." if prompt in silent else oracle(prompts[prompt])

    server = serve(answer)
    rate = run(tmp_path, server, twins="cues")["flip_rate"]["cues"]
    assert (rate["num_pairs"], rate["num_without_verdict"]) == (NUM_PAIRS - 8, 8)
    assert "5 calls failed for good" in capsys.readouterr().err
    row = json.loads(judged_file(tmp_path).read_text().splitlines()[0])
    assert row["model_pred_twins"] == {"cues": None} and "500" in row["meta"]["model_error_twins"]["cues"]
    is_broken = False
    rate = run(tmp_path, server, twins="cues")["flip_rate"]["cues"]
    assert (rate["num_pairs"], rate["num_without_verdict"]) == (NUM_PAIRS - 3, 3)


def test_the_answers_to_twins_count_in_the_budget(tmp_path, prompts, serve):
    """A call costs 10 + 5 tokens."""
    server = serve(lambda model, prompt: oracle(prompts[prompt]))
    budget = str(max(map(len, prompts)) // 4 + 15 * NUM_PAIRS)
    run(tmp_path, server, "--budget-tokens", budget, "--concurrency", "1", twins="")
    for _ in range(2):
        with pytest.raises(UserError, match="stopped: the budget of .* is spent"):
            run(tmp_path, server, "--budget-tokens", budget, "--concurrency", "1", twins="cues")
    assert server.asked.total() < NUM_PAIRS + 5


_MINE = """
from dataclasses import replace
from ralign.engine.data.twins import TwinKind

def shout(pair):
    if pair.gt_label == "B":
        return None
    return replace(pair, response_A=pair.response_A + "!")

SHOUT = TwinKind(make=shout, why_none="they are labelled B")
OTHER = TwinKind(make=lambda pair: replace(pair, id="x"), why_none="")
"""


def test_a_kind_of_the_users_own_and_pairs_without_a_twin(tmp_path, pairs, prompts, serve, capsys):
    (tmp_path / "mine.py").write_text(_MINE)
    server = serve(lambda model, prompt: coin(pairs[0]) if "!" in prompt else oracle(prompts[prompt]))
    name = f"{tmp_path}/mine.py:SHOUT"
    rate = run(tmp_path, server, twins=name)["flip_rate"][name]
    num_b = sum(pair.gt_label == "B" for pair in pairs)
    assert (rate["num_pairs"], rate["num_without_twin"]) == (NUM_PAIRS - num_b, num_b)
    assert f"{num_b} of {NUM_PAIRS} pairs have no {name} twin: they are labelled B" in capsys.readouterr().err
    with pytest.raises(UserError, match="--twins=.*OTHER: the twin of 'dev-000000' has the id 'x'"):
        run(tmp_path, server, twins=f"{tmp_path}/mine.py:OTHER")


def test_unknown_kinds_and_files_of_answers_are_refused(tmp_path, pairs, prompts, serve):
    with pytest.raises(
        UserError, match="--twins=nope: expected one of order, cues, markdown, padding, reorder"
    ):
        read_kinds("--twins", "order,nope")
    server = serve(lambda model, prompt: oracle(prompts[prompt]))
    run(tmp_path, server, twins="")
    command = ["run", "--pairs", f"{tmp_path}/dev.jsonl", "--model", f"judged:{judged_file(tmp_path)}"]
    with pytest.raises(UserError, match="--twins order: --model judged:FILE has no answers to them"):
        _main([*command, "--metarm", "rule", "--out", f"{tmp_path}/b", "--twins", "order"])


RECORD = {"id": "x", "gt_label": "A", "model_pred": "A", "metarm_verdict": "Correct"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_pred_greedy": "A"}, "model_pred_greedy without model_pred_twins"),
        ({"model_pred_twins": {}}, "model_pred_twins without model_pred_greedy"),
        (
            {"model_pred_greedy": "C", "model_pred_twins": {}},
            "model_pred_greedy must be A, B or null, got 'C'",
        ),
        (
            {"model_pred_greedy": "A", "model_pred_twins": ["A"]},
            "model_pred_twins must be an object, got list",
        ),
        (
            {"model_pred_greedy": "A", "model_pred_twins": {"order": "a"}},
            "model_pred_twins.order must be A, B or",
        ),
        (
            {"model_pred_greedy": "A", "model_pred_twins": {"order": ["A"]}},
            "model_pred_twins.order must be A, B",
        ),
    ],
)
def test_odd_verdicts_on_twins_are_bad_lines(fields, message):
    with pytest.raises(BadLine, match=message):
        parse_judged(RECORD | fields)


def test_verdicts_on_twins_are_read():
    assert parse_judged(RECORD).twin_verdicts is None
    judged = parse_judged(RECORD | {"model_pred_greedy": None, "model_pred_twins": {"order": "B", "x": None}})
    assert judged.greedy_verdict is None and judged.twin_verdicts == {"order": "B", "x": None}


def test_the_worst_group_of_a_named_feature(tmp_path):
    rows = [
        {"response_A": "- one\n- two", "response_B": "one, two and three"},
        {"response_A": "same", "response_B": "same"},
        {"response_A": "**yes**", "response_B": "no"},
    ]
    assert cue_sides(rows, "longer") == ["B", None, "A"]
    assert cue_sides(rows, "markdown") == ["A", None, "A"]
    assert cue_sides([{"meta": {"cue_side": "B"}}, {"meta": None}], "marked") == ["B", None]
    path = tmp_path / "t.jsonl"
    lines = [RECORD | row | {"id": f"x{n}"} for n, row in enumerate(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    _main(["score", f"m={path}", "--cue", "longer", "--out", f"{tmp_path}/out", "--draws", "50"])
    summary = summary_of(tmp_path / "out")
    result = summary["models"]["m"]["t"]
    assert (result["num_worst_group"], result["worst_group_l_acc"]["value"]) == (1, 1)
    assert summary["notes"][0] == "Worst group: the pairs whose longer response is the worse one."
    _main(["score", f"m={path}", "--out", f"{tmp_path}/out", "--draws", "50"])
    assert "worst_group_l_acc" not in summary_of(tmp_path / "out")["models"]["m"]["t"]
