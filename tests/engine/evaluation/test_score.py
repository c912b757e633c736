"""The metrics of judged files: parity with the released definitions, subsets, comparisons, the command."""

import json
import os
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from ralign.engine.evaluation.cli import _main
from ralign.engine.evaluation.score import compare, compare_models, read_files, score
from ralign.engine.judging.metrics import categorise
from ralign.engine.runtime.errors import UserError

NUM_ROWS = 2400
_KINDS = ("Correct", "Incorrect", "CallFail", "ParseFail", "wrong", "unparsable")


def judged_row(number, kind, *, model="judge-8b", label="A", subset="code"):
    other = "B" if label == "A" else "A"
    verdict = {"wrong": other, "unparsable": None}.get(kind, label)
    outcome = "SkippedLabelMismatch" if kind in ("wrong", "unparsable") else kind
    return {
        "id": f"p{number}",
        "source": {"dataset": "made-up", "subset": subset},
        "conversations": [{"role": "user", "content": f"Question {number}?"}],
        "response_A": "one",
        "response_B": "two",
        "gt_label": label,
        "gt_judgment": "Because. \\boxed{A}",
        "model_judgment": f"... \\boxed{{{verdict}}}" if verdict else "no verdict",
        "model_pred": verdict,
        "metarm_raw": "",
        "metarm_analysis": "",
        "metarm_verdict": outcome,
        "metarm_score": {"Correct": 1.0, "Incorrect": 0.0}.get(outcome),
        "meta": {"model_name": model, "metarm_model_name": "metarm", "metarm_error": None},
    }


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def mixed_rows(seed, num_rows=NUM_ROWS, **fixed):
    rng = random.Random(seed)
    weights = [rng.random() + 0.05 for _ in _KINDS]
    return [
        judged_row(
            number,
            rng.choices(_KINDS, weights)[0],
            label="AB"[number * number % 3 % 2],
            subset=rng.choice(("code", "math", "chat")),
            **fixed,
        )
        for number in range(num_rows)
    ]


def released(rows):
    """The three metrics by the released evaluator's definitions, as exact fractions."""
    verdicts = [row["metarm_verdict"] for row in rows]
    num_right = len([row for row in rows if row["model_pred"] == row["gt_label"]])
    num_correct, num_incorrect = verdicts.count("Correct"), verdicts.count("Incorrect")
    answered = len(rows) - verdicts.count("CallFail") - verdicts.count("ParseFail")
    return {
        "l_acc": Fraction(num_right, len(rows)),
        "s_corr": Fraction(num_incorrect, num_correct + num_incorrect),
        "f_score": Fraction(num_correct, answered),
    }


@pytest.mark.parametrize("seed", range(4))
def test_parity_with_the_released_definitions_on_every_outcome_mixed(tmp_path, seed, capsys):
    rows = mixed_rows(seed)
    assert {row["metarm_verdict"] for row in rows} == {
        "Correct", "Incorrect", "CallFail", "ParseFail", "SkippedLabelMismatch",
    }  # fmt: skip
    _main(["score", write(tmp_path / "helpsteer3.jsonl", rows), "--json", "--draws", "200"])
    result = json.loads(capsys.readouterr().out)["models"]["judge-8b"]["helpsteer3"]
    assert result["num_pairs"] == NUM_ROWS
    for name, exact in released(rows).items():
        assert result[name]["value"] == float(exact)
        assert result[name]["low"] <= float(exact) <= result[name]["high"]
    assert result["num_parse_fail"] == sum(row["model_pred"] is None for row in rows)
    assert result["num_call_fail"] == 0
    assert result["num_metarm_call_fail"] == sum(row["metarm_verdict"] == "CallFail" for row in rows)
    assert result["num_metarm_parse_fail"] == sum(row["metarm_verdict"] == "ParseFail" for row in rows)
    assert result["num_judge_fail"] == result["num_metarm_call_fail"] + result["num_metarm_parse_fail"] > 0
    for subset in ("code", "math", "chat"):
        part = [row for row in rows if row["source"]["subset"] == subset]
        for name, exact in released(part).items():
            assert result["subsets"][subset][name]["value"] == float(exact)


# L-Acc, S-Corr and F-Score of the paper's table: HelpSteer3, RewardBench 2, PPE preference
_PAPER = {
    "Qwen3-8B": "72.9/45.8/39.5 82.7/24.6/62.4 62.2/45.2/34.1",
    "RLVR-8B": "72.9/44.6/40.4 89.2/25.9/66.1 63.7/47.4/33.5",
    "R-Align-8B": "73.1/34.6/47.8 89.8/21.7/70.3 63.6/34.9/41.4",
    "Qwen3-14B": "74.1/40.0/44.5 87.9/20.1/70.2 65.2/36.9/41.1",
    "RLVR-14B": "75.5/46.9/40.1 88.1/29.0/62.5 65.7/45.7/35.6",
    "R-Align-14B": "76.3/29.2/54.0 92.0/14.6/78.5 65.7/26.9/48.1",
    "GPT-OSS-120B": "76.5/37.9/47.4 90.6/16.2/75.9 64.5/40.7/38.2",
    "RRM-32B": "74.7/59.0/30.6 88.5/36.7/56.0 65.1/62.4/24.5",
    "RM-R1-Qwen-32B": "75.1/32.9/50.4 87.1/18.3/71.2 65.6/30.0/45.9",
}


@pytest.mark.parametrize("model", _PAPER)
def test_the_paper_s_table_satisfies_the_definitions(model):
    """F = L (1 - S) where few calls fail: the three figures' rounding alone makes up to 0.15 points.

    0.05 in F, 0.05 (1 - S) in L and 0.05 L in S: at most 0.15, and at L = 0.9, S = 0.2 already 0.135.
    """
    for cell in _PAPER[model].split():
        l_acc, s_corr, f_score = map(float, cell.split("/"))
        assert abs(f_score - l_acc * (1 - s_corr / 100)) < 0.15


def test_both_orders_give_swap_consistency_and_both_order_l_acc(tmp_path):
    rows = [judged_row(n, kind) for n, kind in enumerate(["Correct"] * 6 + ["wrong"] * 3 + ["unparsable"])]
    swapped = ["B", "B", "B", "A", None, "B", "A", "B", "A", "A"]  # as written: right is "B"
    for row, verdict in zip(rows, swapped, strict=True):
        row["model_pred_swapped"] = verdict
    judged = read_files([write(tmp_path / "t.jsonl", rows)])
    result = score(judged, subset_field="source")["judge-8b"]["t"]
    assert result["l_acc"]["value"] == 0.6  # the official figure is that of the single order
    assert result["both_order_l_acc"]["value"] == 0.4
    assert result["swap_consistency"]["value"] == 0.6  # four right twice, two wrong twice


def test_one_pair_without_the_second_order_means_no_figure_for_both(tmp_path):
    rows = mixed_rows(0, 20)
    for row in rows[1:]:
        row["model_pred_swapped"] = "A"
    result = score(read_files([write(tmp_path / "t.jsonl", rows)]), subset_field="source")["judge-8b"]["t"]
    assert result["swap_consistency"] is None and "both_order_l_acc" not in result


def test_failed_calls_of_the_judge_stand_beside_the_wrong_verdicts_that_they_make(tmp_path, capsys):
    rows = [judged_row(n, "unparsable") for n in range(6)] + [judged_row(n, "Correct") for n in range(6, 10)]
    for row in rows[:3]:
        row["model_judgment"] = None
    files = [write(tmp_path / "one.jsonl", rows)]
    for row in rows:
        row["model_pred_swapped"], row["model_judgment_swapped"] = "B", "\\boxed{B}"
    rows[9]["model_pred_swapped"] = rows[9]["model_judgment_swapped"] = None
    files.append(write(tmp_path / "two.jsonl", rows))
    _main(["score", *files, "--json", "--draws", "10", "--out", f"{tmp_path}/out"])
    tests = json.loads(capsys.readouterr().out)["models"]["judge-8b"]
    assert [tests[test]["num_call_fail"] for test in ("one", "two")] == [3, 3]
    assert tests["one"]["num_parse_fail"] == 6 and tests["one"]["l_acc"]["value"] == 0.4
    assert "num_swapped_call_fail" not in tests["one"] and tests["two"]["num_swapped_call_fail"] == 1
    assert tests["two"]["swap_consistency"]["value"] == 0.3
    header, one, two = (tmp_path / "out" / "metrics.csv").read_text().splitlines()
    columns = [header.split(",").index(name) for name in ("num_call_fail", "num_swapped_call_fail")]
    assert [[row.split(",")[n] for n in columns] for row in (one, two)] == [["3", ""], ["3", "1"]]
    page = (tmp_path / "out" / "index.html").read_text()
    assert "<th>Calls failed</th>" in page and "<td>3 + 1 swapped</td>" in page
    _main(["score", *files, "--draws", "10"])
    text = capsys.readouterr().out
    assert "Calls failed" in text and " 3 + 1 swapped " in text


BAD = {
    "no metarm_verdict": {"metarm_verdict": None},
    "unknown metarm_verdict 'Maybe'": {"metarm_verdict": "Maybe"},
    "model_pred must be A, B or null, got 'C'": {"model_pred": "C"},
    "gt_label must be A or B": {"gt_label": "tie"},
    "metarm_verdict Correct with model_pred B": {"model_pred": "B"},
    "metarm_verdict SkippedLabelMismatch with model_pred A": {"metarm_verdict": "SkippedLabelMismatch"},
    "model_pred_swapped must be A, B or null": {"model_pred_swapped": "a"},
    "id 'p0' was already used": {"id": "p0"},
}


@pytest.mark.parametrize("reason", BAD)
def test_a_row_that_cannot_be_is_named_and_refused(tmp_path, reason):
    rows = [judged_row(0, "Correct"), judged_row(1, "Correct") | BAD[reason], judged_row(2, "wrong")]
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(UserError, match="t.jsonl:2: ") as error:
        read_files([path])
    assert reason in str(error.value)
    assert [pair.id for pair in read_files([path], max_bad_lines=1)["judge-8b"]["t"]] == ["p0", "p2"]


def test_models_are_known_by_name_by_folder_or_by_what_the_file_says(tmp_path):
    first = write(tmp_path / "a" / "t.jsonl", mixed_rows(0, 9, model=None))
    second = write(tmp_path / "b" / "t.jsonl", mixed_rows(1, 9))
    assert list(read_files([first, second])) == ["a", "judge-8b"]
    assert list(read_files([f"x={first}", f"y={second}"])) == ["x", "y"]
    with pytest.raises(UserError, match="has the test 't' from another file"):
        read_files([f"x={first}", f"x={second}"])


def test_files_of_the_released_evaluator_are_one_test_of_several_models(tmp_path, capsys):
    names = {
        "gpt-5": "gpt-5",
        "Org/Judge  8B (new)": "Org_Judge_8B_new",
    }  # meta.model_name, in the file's name
    files = [
        write(tmp_path / f"helpsteer3_aug__{name}_metarm_gemini-3-pro.jsonl", mixed_rows(n, 60, model=model))
        for n, (model, name) in enumerate(names.items())
    ]
    _main(["score", *files, "--json", "--draws", "10"])
    summary = json.loads(capsys.readouterr().out)
    assert {model: list(tests) for model, tests in summary["models"].items()} == dict.fromkeys(
        names, ["helpsteer3_aug"]
    )
    assert [found["model"] for found in summary["comparisons"]["helpsteer3_aug"]] == ["Org/Judge  8B (new)"]
    assert list(read_files([f"mine={files[0]}"])["mine"]) == ["helpsteer3_aug"]
    other = write(tmp_path / "a__b_metarm_c.jsonl", mixed_rows(0, 9, model="not b"))
    assert list(read_files([other])["not b"]) == ["a__b_metarm_c"]


def _released_summary(folder):
    """Model and test of every file, as the released summary reads them off the names."""
    found = {}
    for path in folder.glob("*.jsonl"):
        bench, _, rest = path.stem.partition("__")
        found.setdefault(rest.split("_metarm_")[0], {})[bench] = path
    return found


def test_judged_files_are_written_for_the_released_summary_and_read_back(tmp_path):
    rows = {("m 1", "t__1"): mixed_rows(0, 30), ("m2", "t__1"): mixed_rows(1, 30)}
    files = [f"{m}={write(tmp_path / m / f'{t}.jsonl', found)}" for (m, t), found in rows.items()]
    _main(["score", *files, "--draws", "10", "--released", f"{tmp_path}/result_metarm"])
    found = _released_summary(tmp_path / "result_metarm")
    assert {model: list(tests) for model, tests in found.items()} == {"m_1": ["t_1"], "m2": ["t_1"]}
    again = read_files([str(found[name]["t_1"]) for name in ("m_1", "m2")])
    assert [[pair.record["metarm_verdict"] for pair in again[m]["t_1"]] for m in ("m 1", "m2")] == [
        [row["metarm_verdict"] for row in part] for part in rows.values()
    ]
    with pytest.raises(UserError, match="m_2 on t__1 and m 2 on t__1 would both be t_1__m_2.jsonl"):
        same = [f"{m}={file.partition('=')[2]}" for m, file in zip(("m 2", "m_2"), files, strict=True)]
        _main(["score", *same, "--draws", "10", "--released", f"{tmp_path}/x"])


def _mcnemar(num_gained, num_lost):
    """Two-sided exact p: a coin decides which model each differing pair favours."""
    from math import comb

    n, k = num_gained + num_lost, max(num_gained, num_lost)
    tail = sum(comb(n, i) for i in range(k, n + 1)) / 2**n
    return min(1.0, 2 * tail if num_gained != num_lost else 1.0)


@pytest.mark.parametrize(("num_gained", "num_lost"), [(12, 4), (30, 25), (7, 7), (9, 0)])
def test_the_p_value_of_l_acc_is_mcnemar_s(tmp_path, num_gained, num_lost):
    kinds = [("wrong", "Correct")] * num_gained + [("Correct", "wrong")] * num_lost
    kinds += [("Correct", "Correct")] * 40 + [("wrong", "unparsable")] * 10
    files = [
        write(
            tmp_path / model / "t.jsonl",
            [judged_row(n, kind[column], model=model) for n, kind in enumerate(kinds)],
        )
        for column, model in enumerate(("old", "new"))
    ]
    (found,) = compare_models(read_files(files), seed=1)["t"]
    assert (found["baseline"], found["model"], found["num_pairs"]) == ("old", "new", len(kinds))
    assert found["num_different"] == num_gained + num_lost
    assert found["l_acc"]["difference"] == pytest.approx((num_gained - num_lost) / len(kinds))
    assert found["l_acc"]["p_value"] == pytest.approx(_mcnemar(num_gained, num_lost), abs=0.015)


def test_p_values_are_even_where_models_are_alike_and_small_where_one_has_better_reasons():
    rng = np.random.default_rng(0)
    correct, incorrect = categorise(["A", "A"], ["A", "A"], ["Correct", "Incorrect"])

    def model(share):
        return np.where(rng.random(150) < share, correct, incorrect)

    num = 1000
    alike = [compare(model(0.6), model(0.6), num_draws=200, seed=n)["s_corr"]["p_value"] for n in range(num)]
    # Of n differing pairs Binomial(n, 1/2) favour one model. The exact test on them gives p <= level with at most
    # that probability, and at least `least` for every n from 45 to 100 (here 72 on average); 4 deviations of a share.
    for level, least in ((0.05, 0.025), (0.2, 0.118), (0.5, 0.349)):
        share = sum(p <= level for p in alike) / num
        low, high = (edge * (1 - edge) / num for edge in (least, level))
        assert least - 4 * low**0.5 < share < level + 4 * high**0.5
    better = compare(model(0.5), model(0.75))
    assert better["s_corr"]["p_value"] < 0.002 and better["s_corr"]["high"] < 0 < better["f_score"]["low"]
    same = better["l_acc"]  # both are right in all 150
    assert (same["difference"], same["p_value"]) == (0, 1) and same["high"] == -same["low"]
    assert same["high"] == pytest.approx(0.025, abs=1e-3)


def test_pairs_of_one_prompt_are_compared_together():
    rng = np.random.default_rng(0)
    wrong, correct = categorise(["B", "A"], ["A", "A"], ["SkippedLabelMismatch", "Correct"])
    old, new = (np.where(rng.random(150) < share, correct, wrong) for share in (0.6, 0.7))
    single = compare(old, new)
    prompts = [f"prompt {n}" for n in range(150) for _ in range(3)]
    tripled = compare(old.repeat(3), new.repeat(3), clusters=prompts)
    naive = compare(old.repeat(3), new.repeat(3))
    assert tripled["l_acc"]["p_value"] == pytest.approx(single["l_acc"]["p_value"], abs=0.015)
    assert naive["l_acc"]["p_value"] < single["l_acc"]["p_value"] / 3
    widths = [found["l_acc"]["high"] - found["l_acc"]["low"] for found in (single, tripled, naive)]
    assert widths[0] == pytest.approx(widths[1], rel=0.01)
    assert widths[1] == pytest.approx(3**0.5 * widths[2], rel=0.03)


def test_prompts_are_found_in_judged_files(tmp_path):
    """Three rows a prompt, by the turns or by meta.prompt_id, against rows that each have their own."""
    rows = mixed_rows(0, 60)
    thrice = [{**row, "id": f"{row['id']}-{n}"} for row in rows for n in range(3)]
    apart = [{**row, "conversations": [{"role": "user", "content": row["id"]}]} for row in thrice]
    by_id = [{**row, "meta": {**row["meta"], "prompt_id": row["id"].split("-")[0]}} for row in apart]
    names = ("rows", "thrice", "apart", "by_id")
    files = [
        f"{name}={write(tmp_path / name / 't.jsonl', content)}"
        for name, content in zip(names, (rows, thrice, apart, by_id), strict=True)
    ]
    found = score(read_files(files), subset_field="source")
    widths = [found[name]["t"]["l_acc"]["high"] - found[name]["t"]["l_acc"]["low"] for name in names]
    assert widths[1] == widths[3] == pytest.approx(widths[0], rel=0.02)
    assert widths[1] / widths[2] == pytest.approx(3**0.5, rel=0.03)


def test_comparing_wants_the_same_labels(tmp_path):
    files = [
        write(tmp_path / label / "t.jsonl", [judged_row(0, "Correct", label=label, model=label)])
        for label in "AB"
    ]
    with pytest.raises(UserError, match="pair 'p0' is labelled"):
        compare_models(read_files(files), seed=0)


def test_the_terminal_shows_failures_subsets_and_comparisons(tmp_path, capsys):
    files = [
        write(tmp_path / m / "ppe.jsonl", mixed_rows(n, 300, model=m)) for n, m in enumerate(("m1", "m2"))
    ]
    _main(["score", *files, "--draws", "50"])
    text = capsys.readouterr().out
    assert "…" not in text and "ppe (300 pairs)" in text and " call, " in text and "ppe: math" in text
    assert "m2 against m1" in text and "], p " in text


def _command(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "ralign.engine.evaluation.cli", *args],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        **kwargs,
    )


def test_a_mistake_is_one_line_and_status_2(tmp_path):
    for args, said in (
        (["score", str(tmp_path / "none.jsonl")], "none.jsonl: No such file"),
        (["score"], "required: FILE"),
        (["sore"], "invalid choice: 'sore'"),
        (["score", "x", "--draws", "0"], "'0' is not a whole number"),
    ):
        done = _command(*args)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


def test_help_answers_without_loading_torch():
    done = _command("score", "--help")
    assert done.returncode == 0 and "--json" in done.stdout
    code = "import sys; import ralign.engine.evaluation.cli; print('torch' in sys.modules, 'vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False False", done.stderr
