import json
import math

import numpy as np
import pytest
from ralign.engine.report.metrics_log import MetricsLog, read_metrics, series
from ralign.engine.runtime.errors import UserError


def test_lines_are_sorted_json_and_read_back(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.write(0, {"reward/mean": np.float32(0.5), "policy/num_tokens": np.int64(7), "judge/s_corr": math.nan})
    log.write(2, {"reward/mean": math.inf, "time_s/generate": 1.5})
    lines = log.path.read_text().splitlines()
    assert lines[0] == '{"judge/s_corr": null, "policy/num_tokens": 7, "reward/mean": 0.5, "step": 0}'
    assert json.loads(lines[1]) == {"reward/mean": None, "step": 2, "time_s/generate": 1.5}
    records = read_metrics(log.path)
    assert records[0]["policy/num_tokens"] == 7 and math.isnan(records[0]["judge/s_corr"])
    assert series(records, "reward/mean") == ([0], [0.5])
    assert series(records, "policy/absent") == ([], [])


def test_a_resumed_run_drops_the_steps_it_does_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = MetricsLog(path)
    for step in range(5):
        first.write(step, {"reward/mean": step, "judge/s_corr": math.nan})
    before = path.read_text().splitlines()
    with path.open("a") as file:
        file.write('{"step": 5, "reward/me')  # killed while writing
    again = MetricsLog(path, next_step=3)
    again.write(3, {"reward/mean": 30})
    assert path.read_text().splitlines() == before[:3] + ['{"reward/mean": 30, "step": 3}']
    MetricsLog(path)
    assert path.read_text() == ""


def test_what_breaks_the_contract_is_a_bug(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write(1, {"reward/mean": 1})
    for step, metrics in ((1, {}), (0, {}), (2, {"mean": 1}), (2, {"rewards/mean": 1}), (2, {"reward/": 1})):
        with pytest.raises(AssertionError):
            log.write(step, metrics)
    assert len(read_metrics(log.path)) == 1


def test_other_ranks_write_nothing(tmp_path):
    MetricsLog(tmp_path / "metrics.jsonl", enabled=False).write(0, {"reward/mean": 1})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("line", "said"), [("{", "line 2: not JSON"), ("[1]", "line 2: not an object")])
def test_a_broken_line_is_named(tmp_path, line, said):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=said):
        read_metrics(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.jsonl"):
        read_metrics(tmp_path / "nowhere.jsonl")
