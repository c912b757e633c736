import csv

from ralign.engine.judging.metrics import measure
from ralign.engine.report.metrics_csv import write_csv
from ralign.engine.report.summary import make_summary


def test_a_line_a_model_test_and_subset_with_every_figure(tmp_path):
    whole = measure(["A", "B"], ["A", "A"], ["Correct", "SkippedLabelMismatch"], swapped_verdicts=["B", "B"])
    whole |= {"num_call_fail": 0, "num_metarm_parse_fail": 0}
    nothing = measure(["B"], ["A"], ["SkippedLabelMismatch"])
    whole["subsets"] = {"code, hard": nothing}
    path = write_csv(make_summary({"m": {"t": whole}}, seed=0, time_s={}), tmp_path / "new" / "metrics.csv")
    with path.open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert (first["model"], first["test"], first["subset"]) == ("m", "t", "")
    assert second["subset"] == "code, hard"
    for name in ("l_acc", "s_corr", "f_score", "swap_consistency", "both_order_l_acc"):
        for column, key in ((name, "value"), (f"{name}_low", "low"), (f"{name}_high", "high")):
            assert float(first[column]) == whole[name][key]
    assert second["s_corr"] == second["both_order_l_acc"] == second["num_call_fail"] == ""
    assert second["num_pairs"] == "1" and float(second["l_acc"]) == 0
