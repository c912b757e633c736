"""Judgments that the released rule and the rule of training read differently are counted and said."""

import json

import pytest
from ralign.engine.evaluation.cli import _main
from ralign.engine.evaluation.records import parse_judged
from ralign.engine.evaluation.rules import num_rules_differ, rules_notes

ALIKE = ["It is \\boxed{A}", "No verdict.", "A wins. \\boxed{A} As said: \\boxed{A}"]
DIFFERENT = [
    "It says \\boxed{A}, which is wrong. \\boxed{B}",  # A, none
    "<think>\\boxed{A}?</think> \\boxed{B}",  # A, B
    "<think>\\boxed{A}?",  # A, none
    "It is \\boxed{ A }",  # none, A
]


def judged(number, text, **more):
    return {
        "id": f"p{number}", "gt_label": "B", "model_pred": None, "metarm_verdict": "SkippedLabelMismatch",
        "conversations": [{"role": "user", "content": "x"}], "response_A": "one", "response_B": "two",
        "source": "s", "gt_judgment": "x", "model_judgment": text, "meta": {"model_name": "m"}, **more,
    }  # fmt: skip


@pytest.mark.parametrize("text", [*ALIKE, *DIFFERENT, None])
def test_one_judgment_counts_if_the_rules_differ(text):
    assert num_rules_differ([parse_judged(judged(0, text))]) == (text in DIFFERENT)


def test_both_orders_count_and_a_file_without_texts_does_not():
    swapped = {"model_pred_swapped": None, "model_judgment_swapped": DIFFERENT[1]}
    pairs = [parse_judged(judged(n, text, **swapped)) for n, text in enumerate((ALIKE[0], DIFFERENT[0]))]
    assert num_rules_differ(pairs) == 3
    record = judged(0, None)
    del record["model_judgment"]
    assert num_rules_differ([parse_judged(record)]) == 0
    assert rules_notes({"m": {"t": [parse_judged(record)]}}) == []


def test_the_report_and_the_terminal_say_it_only_where_there_are_any(tmp_path, capsys):
    for name, texts in (("alike", ALIKE), ("mixed", ALIKE + DIFFERENT)):
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(judged(n, text)) + "\n" for n, text in enumerate(texts)))
        _main(["score", str(path), "--out", f"{tmp_path}/out"])
        said = " ".join(capsys.readouterr().out.split())
        summary = json.loads((tmp_path / "out" / "summary.json").read_text())
        notes = [note for note in summary.get("notes", []) if "num_rules_differ" in note]
        assert len(notes) == (name == "mixed")
        assert ("num_rules_differ=4, m on mixed" in said) == (name == "mixed")
