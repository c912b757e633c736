"""The rationales that measure a MetaRM, and measurements of MetaRMs with a known accuracy."""

import json

import pytest
from ralign.engine.config.registry import METARMS
from ralign.engine.data.pairs import Pair, write_pairs
from ralign.engine.data.verdicts import verdict_of
from ralign.engine.evaluation.cli import _main, build_parser
from ralign.engine.evaluation.metarm_probe import KINDS, build_cases, measure_metarm
from ralign.engine.evaluation.models import metarm_config
from ralign.engine.judging.judge import ClientContext
from ralign.engine.judging.metarm import Outcome, Review
from ralign.engine.runtime.errors import UserError


def rmbench_pair(
    number, *, key="sunflower seeds", fact="Tahini is made with sesame seeds, not sunflower seeds."
):
    bad = "BA"[number % 2]
    good = "AB"[number % 2]
    responses = {good: "Tahini comes from sesame.", bad: f"Tahini is a spread made from {key} and lemonade."}
    return Pair(
        id=f"rm-{number}",
        source="rmbench-chat",
        conversations=[{"role": "user", "content": f"What is tahini ({number // 3})?"}],
        response_A=responses["A"],
        response_B=responses["B"],
        gt_label=good,
        gt_judgment=(
            f"Assistant {good} is better. The decisive difference is factual accuracy: Assistant {bad}'s answer"
            f' contains an incorrect claim about "{key}". Correct fact: {fact} Style, length and formatting are'
            " not decisive."
        ),
        meta={"error_key": key},
    )


def test_each_pair_gives_four_rationales_of_which_one_names_the_error():
    pairs = [rmbench_pair(number) for number in range(6)]
    cases = build_cases(pairs)
    assert [case.kind for case in cases] == list(KINDS) * 6
    for case in cases:
        good, bad = case.pair.gt_label, "AB"[case.pair.gt_label == "A"]
        assert verdict_of(case.rationale) == good
        assert (case.expected is Outcome.CORRECT) == (case.kind == "true_error")
        if case.kind == "true_error":
            assert "not sunflower seeds" in case.rationale and f"Response {bad}" in case.rationale
        if case.kind == "other_error":
            assert '"lemonade" is false' in case.rationale  # a word of the worse response, not of the error
    assert len({case.rationale for case in cases}) > len(KINDS)


def test_pairs_that_do_not_name_their_error_are_refused():
    for change in ({"meta": {}}, {"meta": {"error_key": " "}}, {"gt_judgment": "B is wrong"}):
        fields = {name: getattr(rmbench_pair(0), name) for name in Pair.__dataclass_fields__}
        with pytest.raises(UserError, match="'rm-0' does not name its error"):
            build_cases([Pair(**(fields | change))])


def test_known_accuracies():
    cases = build_cases([rmbench_pair(number) for number in range(12)])
    perfect = measure_metarm(cases, [Review(outcome=case.expected) for case in cases])
    for found in (perfect["accuracy"], perfect["balanced"]):
        assert found["value"] == found["high"] == 1 and found["low"] < 0.75  # four prompts prove little
    assert (perfect["num_pairs"], perfect["num_prompts"]) == (12, 4)
    lenient = measure_metarm(cases, [Review(outcome=Outcome.CORRECT)] * len(cases))
    assert lenient["accuracy"]["value"] == 0.25 and lenient["balanced"]["value"] == 0.5
    assert lenient["kinds"]["true_error"]["accuracy"]["value"] == 1
    failing = measure_metarm(
        cases, [Review(outcome=(Outcome.CALL_FAIL, Outcome.PARSE_FAIL)[n % 2]) for n in range(len(cases))]
    )
    assert failing["accuracy"]["value"] == 0 and failing["num_call_fail"] == failing["num_parse_fail"] == 24


def test_the_interval_is_over_prompts():
    """Three pairs a prompt, alike: as wide as if there were a third of the pairs."""
    cases = build_cases([rmbench_pair(number) for number in range(90)])
    wrong = {f"What is tahini ({n})?" for n in range(15)}
    reviews = [
        Review(
            outcome=Outcome.PARSE_FAIL if case.pair.conversations[-1]["content"] in wrong else case.expected
        )
        for case in cases
    ]
    found = measure_metarm(cases, reviews)["accuracy"]
    assert found["value"] == 0.5
    half_width = 1.96 * (0.25 / 30) ** 0.5  # 30 prompts, not 90 pairs or 360 cases
    assert found["high"] - found["low"] == pytest.approx(2 * half_width, rel=0.15)


def test_the_command_reports_the_baseline_and_a_served_metarm(tmp_path, serve, capsys):
    write_pairs(tmp_path / "rm.jsonl", [rmbench_pair(number) for number in range(20)])
    _main(["metarm", f"{tmp_path}/rm.jsonl", "--json", "--cases", f"{tmp_path}/cases.jsonl"])
    result = json.loads(capsys.readouterr().out)
    kinds = {kind: found["accuracy"]["value"] for kind, found in result["kinds"].items()}
    assert kinds == {"true_error": 1, "other_error": 0.5, "style_praise": 1, "vague": 1}
    rows = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
    assert len(rows) == 80 and {row["outcome"] for row in rows} == {"Correct", "Incorrect"}

    def answer(model, prompt):
        # Correct wherever the judgment under audit says so of sesame
        assert "<response_A>\nTahini" in prompt and "What is tahini" in prompt
        audited = prompt.split("<audited_judgment>\n")[1].split("\n</audited_judgment>")[0]
        verdict = "Correct" if "sesame" in audited else "Incorrect"
        if "pleasant" in audited:
            return "I would say it is fine."
        form = "<golden_key_points>k</golden_key_points><genrm_analysis>a</genrm_analysis>"
        return f"{form}<final_verdict>{verdict}</final_verdict>"

    server = serve(answer)
    spec = ["--metarm", f"endpoint:{server.url}#m", "--metarm-tries", "2"]
    _main(["metarm", f"{tmp_path}/rm.jsonl", "--json", *spec])
    result = json.loads(capsys.readouterr().out)
    assert result["kinds"]["style_praise"]["num_parse_fail"] == result["num_parse_fail"] == 20
    kinds = {kind: found["accuracy"]["value"] for kind, found in result["kinds"].items()}
    assert kinds == {"true_error": 1, "other_error": 1, "style_praise": 0, "vague": 1}
    _main(["metarm", f"{tmp_path}/rm.jsonl", *spec])
    text = capsys.readouterr().out
    assert "style praise" in text and "balanced" in text


COVERED = (
    "<golden_key_points><point>x</point><point>y</point></golden_key_points><genrm_analysis>a</genrm_analysis>"
    "<coverage>yes, no</coverage>"
)


def test_a_graded_template_of_the_user_s_own_and_its_threshold(tmp_path, serve):
    server = serve(lambda model, prompt: COVERED)
    mine = tmp_path / "mine.txt"
    mine.write_text("{golden} {judgment}, in this form: <coverage>yes or no for each point</coverage>")
    for template in ("graded", str(mine)):
        for threshold, outcome in ((0.5, Outcome.CORRECT), (0.6, Outcome.INCORRECT)):
            options = ["--metarm-template", template, "--metarm-graded-threshold", str(threshold)]
            command = ["metarm", "FILE", "--metarm", f"endpoint:{server.url}#m", "--metarm-tries", "1"]
            config = metarm_config(build_parser().parse_args([*command, *options]))
            metarm = METARMS.load(config.kind).open(config, ClientContext())
            review = metarm.review(rmbench_pair(0), "x").result(60)
            metarm.close()
            assert (review.outcome, review.coverage) == (outcome, 0.5), (template, threshold)


def test_the_command_measures_a_metarm_of_the_user_s_own(tmp_path, capsys):
    write_pairs(tmp_path / "rm.jsonl", [rmbench_pair(number) for number in range(4)])
    (tmp_path / "lenient.py").write_text(
        "from ralign.engine.judging.metarm import Outcome, RuleBased\n"
        "from ralign.engine.judging.metarms import MetaRMKind\n"
        "class Lenient(RuleBased):\n"
        "    def outcome(self, golden, judgment):\n"
        "        return Outcome.CORRECT\n"
        "LENIENT = MetaRMKind(open=lambda config, context: Lenient())\n"
    )
    _main(["metarm", f"{tmp_path}/rm.jsonl", "--json", "--metarm", f"{tmp_path}/lenient.py:LENIENT"])
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"]["value"] == 0.25 and result["kinds"]["true_error"]["accuracy"]["value"] == 1
