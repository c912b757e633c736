"""ralign-data: what its commands print and refuse."""

import json
import subprocess
import sys

import pytest
from ralign.engine.data.cli import _main
from ralign.engine.data.pairs import Pair, read_pairs, write_pairs
from ralign.engine.runtime.errors import UserError


def pair(number, *, prompt=None, label="A", golden=None, response_b="Peru."):
    golden = f"Response {'B' if label == 'A' else 'A'} errs. \\boxed{{{label}}}" if golden is None else golden
    return Pair(
        id=f"p{number}",
        source="s",
        conversations=[{"role": "user", "content": prompt or f"Question number {number} about some city?"}],
        response_A=f"Norway {number}.",
        response_B=response_b,
        gt_label=label,
        gt_judgment=golden,
    )


def test_validate_names_every_bad_line_and_every_odd_pair(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    pairs = [
        pair(0),
        pair(1, golden="It is \\boxed{B}"),
        pair(2, golden="</think>"),
        pair(3, golden="This one is better."),
        pair(4, response_b=" Norway 4. "),
        Pair(**{**{n: getattr(pair(0), n) for n in Pair.__dataclass_fields__}, "id": "p5"}),
    ]
    write_pairs(path, pairs)
    _main(["validate", str(path)])
    said = capsys.readouterr().out
    for line in (
        "6 pairs, 0 bad lines",
        "verdict is not the label: 1 pairs (p1)",
        "only thinking, which the MetaRM does not read: 1 pairs (p2)",
        "golden judgment cannot be swapped reliably: 2 pairs (p1, p3)",
        "the two responses are the same: 1 pairs (p4)",
        "those of an earlier pair: 1 pairs (p5)",
        "labels: 6 A, 0 B (unbalanced",
    ):
        assert line in said
    with path.open("a") as file:
        file.write('{"id": "p9"}\nnonsense\n')
    with pytest.raises(UserError, match="p.jsonl: not a valid pairs file"):
        _main(["validate", str(path)])
    said = capsys.readouterr().out
    assert "p.jsonl:7: missing field" in said and "p.jsonl:8: not JSON" in said


def test_validate_of_files_that_wait_for_golden_judgments(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    record = {n: getattr(pair(0), n) for n in Pair.__dataclass_fields__}
    del record["gt_judgment"]
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError):
        _main(["validate", str(path)])
    capsys.readouterr()
    _main(["validate", str(path), "--without-golden", "--json"])
    report = json.loads(capsys.readouterr().out)[str(path)]
    assert report["num_pairs"] == 1 and report["facts"]["num_with_golden"] == 0


def test_swap_writes_the_other_order_or_both(tmp_path, capsys):
    write_pairs(tmp_path / "p.jsonl", [pair(0), pair(1, label="B", golden="")])
    _main(["swap", f"{tmp_path}/p.jsonl", f"{tmp_path}/both.jsonl", "--both"])
    found = read_pairs(tmp_path / "both.jsonl", need_golden=False)
    assert [p.id for p in found] == ["p0", "p1", "p0-swapped", "p1-swapped"]
    assert [p.gt_label for p in found] == ["A", "B", "B", "A"]
    assert found[2].gt_judgment == "Response A errs. \\boxed{B}" and found[2].response_A == "Peru."
    assert not capsys.readouterr().err


def test_swap_names_judgments_that_may_come_out_wrong_and_can_leave_them_out_or_refuse(tmp_path, capsys):
    pairs = [
        pair(0),
        pair(1, golden="It is right. \\boxed{A}"),
        pair(2, golden="A wins; the first one is sound."),
    ]
    write_pairs(tmp_path / "p.jsonl", pairs)
    args = ["swap", f"{tmp_path}/p.jsonl", f"{tmp_path}/o.jsonl"]
    _main(args)
    assert len(read_pairs(tmp_path / "o.jsonl")) == 3
    said = capsys.readouterr()
    assert "2 of 3 golden judgments cannot be swapped reliably and may name the wrong response" in said.err
    assert (
        "p1: names no response outside its verdict" in said.err and "p2: may name a response in:" in said.err
    )
    _main([*args, "--unsure", "drop", "--both"])
    assert [p.id for p in read_pairs(tmp_path / "o.jsonl")] == ["p0", "p1", "p2", "p0-swapped"]
    said = capsys.readouterr()
    assert "1 pairs swapped" in said.out and "2 of 3" in said.err and "were left out" in said.err
    (tmp_path / "o.jsonl").unlink()
    with pytest.raises(UserError, match="2 of 3 golden judgments .* the first is p1: names no response"):
        _main([*args, "--unsure", "refuse"])
    assert not (tmp_path / "o.jsonl").exists()


def test_overlap_finds_train_pairs_that_are_in_a_test_and_leaves_them_out(tmp_path, capsys):
    prompt = "Please tell me in which of the northern countries the city of Oslo is to be found"
    write_pairs(tmp_path / "train.jsonl", [pair(0), pair(1, prompt=f"{prompt}?"), pair(2, prompt="Other")])
    write_pairs(tmp_path / "test.jsonl", [pair(7, prompt=prompt.upper())])
    args = ["overlap", f"{tmp_path}/train.jsonl", "--against", f"{tmp_path}/test.jsonl"]
    _main([*args, "--out", f"{tmp_path}/clean.jsonl"])
    assert "1 of 3 pairs (33.3 %) found" in capsys.readouterr().out
    assert [p.id for p in read_pairs(tmp_path / "clean.jsonl")] == ["p0", "p2"]
    _main([*args, "--json"])
    (match,) = json.loads(capsys.readouterr().out)["matches"]
    assert (match["id"], match["other_id"], match["similarity"]) == ("p1", "p7", 1.0)
    with pytest.raises(UserError, match="--threshold must be .* got 1.5"):
        _main([*args, "--threshold", "1.5"])


def test_overlap_inside_one_file_keeps_the_first(tmp_path, capsys):
    prompt = "Please tell me in which of the northern countries the city of Oslo is to be found"
    write_pairs(tmp_path / "p.jsonl", [pair(n, prompt=prompt) for n in range(4)] + [pair(9)])
    _main(["overlap", f"{tmp_path}/p.jsonl", "--out", f"{tmp_path}/o.jsonl"])
    assert [p.id for p in read_pairs(tmp_path / "o.jsonl")] == ["p0", "p9"]
    assert "3 of 5 pairs" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_help_is_quick(tmp_path):
    program = [sys.executable, "-m", "ralign.engine.data.cli"]
    done = subprocess.run([*program, "convert", "nothing", "a", "b"], capture_output=True, text=True)
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "invalid choice: 'nothing'" in done.stderr
    )
    code = "import sys; import ralign.engine.data.cli; print({'datasets', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
