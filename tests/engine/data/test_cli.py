"""ralign-data: what its commands print and refuse."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
from ralign.engine.data import cli
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


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder: good.jsonl, bad lines of several kinds, a pipe, a folder, a link."""
    monkeypatch.chdir(tmp_path)
    write_pairs("good.jsonl", [pair(0), pair(1, label="B")])
    write_pairs("taken.jsonl", [pair(0), replace(pair(1), id="p0-swapped")])
    line = json.dumps(asdict(pair(0)))
    bad = {
        "twice.jsonl": line.replace('"gt_label": "A"', '"gt_label": "B", "gt_label": "A"'),
        "twice_inside.jsonl": line.replace('"meta": {}', '"meta": {"a": 1, "a": 2}'),
        "nan.jsonl": line.replace('"meta": {}', '"meta": {"a": NaN}'),
        "deep.jsonl": "[" * 100_000,
        "digits.jsonl": '{"id": 1' + "0" * 5000 + "}",
        "surrogate.jsonl": line.replace("Peru", "\\ud800"),
        "five.jsonl": "5",
        "empty.jsonl": "",
    }
    for name, text in bad.items():
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\n")
    os.mkfifo("pipe")
    os.mkdir("folder")
    os.symlink("good.jsonl", "link.jsonl")
    return tmp_path


MISTAKES = [
    (["swap", "good.jsonl", "folder"], "cannot write folder: it is a folder"),
    (["swap", "good.jsonl", "good.jsonl"], "cannot write good.jsonl: it is also an input"),
    (["swap", "good.jsonl", "link.jsonl", "--both"], "cannot write link.jsonl: it is also an input"),
    (["swap", "good.jsonl", "pipe"], "cannot write pipe: it is not a regular file"),
    (["swap", "good.jsonl", "/dev/null"], "cannot write /dev/null: it is not a regular file"),
    (["swap", "good.jsonl", "good.jsonl/o"], "cannot write good.jsonl/o: good.jsonl is not a folder"),
    (["swap", "good.jsonl", "/proc/o"], "cannot write /proc/o: No such file or directory"),
    (["swap", "none.jsonl", "o"], "cannot read none.jsonl: No such file or directory"),
    (["swap", "pipe", "o"], "cannot read pipe: it is not a regular file"),
    (["swap", "taken.jsonl", "o", "--both"], "taken.jsonl: --both would use the id 'p0-swapped' twice"),
    (
        ["swap", "good.jsonl", "o", "--max-bad-lines=-1"],
        "argument --max-bad-lines: '-1' is not a whole number",
    ),
    (["overlap", "good.jsonl", "--out", "folder"], "cannot write folder: it is a folder"),
    (["overlap", "good.jsonl", "--out", "good.jsonl"], "cannot write good.jsonl: it is also an input"),
    (
        ["overlap", "good.jsonl", "--against", "taken.jsonl", "--out", "taken.jsonl"],
        "cannot write taken.jsonl: it is also an input",
    ),
    (
        ["overlap", "good.jsonl", "--threshold", "nan"],
        "argument --threshold: 'nan' is not a finite number above 0",
    ),
    (
        ["overlap", "good.jsonl", "--threshold", "1.5"],
        "argument --threshold: '1.5' is not a finite number above 0",
    ),
    (["overlap", "folder"], "cannot read folder: it is a folder"),
    (["convert", "r_align", "good.jsonl", "good.jsonl"], "cannot write good.jsonl: it is also an input"),
    (["convert", "r_align", "good.jsonl", "folder"], "cannot write folder: it is a folder"),
    (["validate", "/dev/zero"], "cannot read /dev/zero: it is not a regular file"),
    (
        ["validate", "none.jsonl", "good.jsonl", "five.jsonl", "folder"],
        "3 mistakes: cannot read none.jsonl: No such file or directory; cannot read folder: it is a folder;"
        " five.jsonl: not a valid pairs file",
    ),
    (["swap", "twice.jsonl", "o"], "twice.jsonl:1: unreadable JSON (the key 'gt_label' is there twice)"),
    (
        ["swap", "twice_inside.jsonl", "o"],
        "twice_inside.jsonl:1: unreadable JSON (the key 'a' is there twice)",
    ),
    (["swap", "nan.jsonl", "o"], "nan.jsonl:1: unreadable JSON (NaN is not a JSON number)"),
    (["swap", "deep.jsonl", "o"], "deep.jsonl:1: unreadable JSON (nested too deeply)"),
    (["swap", "digits.jsonl", "o"], "digits.jsonl:1: unreadable JSON (Exceeds the limit"),
    (["swap", "surrogate.jsonl", "o"], "surrogate.jsonl:1: contains a lone surrogate"),
    (["swap", "five.jsonl", "o"], "five.jsonl:1: expected a JSON object, got int"),
    (["swap", "empty.jsonl", "o"], "empty.jsonl holds no pair"),
    (["swap", "bytes.jsonl", "o"], "bytes.jsonl:1: not UTF-8 (byte 0 of the line)"),
]


@pytest.mark.parametrize(
    ("argv", "message"), MISTAKES, ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else ""
)
def test_every_mistake_is_one_line_and_writes_nothing(folder, monkeypatch, capsys, argv, message):
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    monkeypatch.setattr(sys, "argv", ["ralign-data", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    line = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and line.startswith("error: ") and message in line
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_an_output_is_written_into_a_new_folder(folder):
    _main(["swap", "good.jsonl", "new/deep/o.jsonl"])
    assert len(read_pairs("new/deep/o.jsonl")) == 2


def test_a_full_disk_leaves_the_old_file_and_the_command_goes_on_after_room_is_made(folder, monkeypatch):
    _main(["swap", "good.jsonl", "o.jsonl"])
    old = (folder / "o.jsonl").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    argv = ["swap", "good.jsonl", "o.jsonl", "--both"]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="cannot write o.jsonl: No space left on device"):
            _main(argv)
    assert (folder / "o.jsonl").read_bytes() == old and not list(folder.glob("*.part"))
    _main(argv)
    assert len(read_pairs("o.jsonl")) == 4


def test_no_escape_sequence_of_a_file_reaches_the_terminal(folder, capsys, caplog):
    hostile = "\x1b[31mred\x1b]0;title\x07"
    prompt = "Please tell me in which of the northern countries the city of Oslo is to be found"
    pairs = [pair(n, prompt=prompt, golden=f"It is {hostile}. \\boxed{{A}}") for n in range(2)]
    write_pairs("hostile.jsonl", [replace(each, id=f"{hostile}{n}") for n, each in enumerate(pairs)])
    with open("hostile.jsonl", "a") as file:
        file.write(json.dumps({hostile: 1})[:-1] + f', "{hostile!r}": }}\n')
    for argv in (
        ["validate", "hostile.jsonl"],
        ["swap", "hostile.jsonl", "o.jsonl", "--max-bad-lines=1"],
        ["overlap", "hostile.jsonl", "--max-bad-lines=1"],
    ):
        try:
            _main(argv)
        except UserError:
            assert argv[0] == "validate"
        shown = "".join(capsys.readouterr())
        assert "\\x1b[31mred" in shown and "\x1b" not in shown and "\x07" not in shown
    assert "\x1b" not in caplog.text


def test_meta_of_any_shape_can_be_swapped(folder):
    metas = [{"reviews": 5}, {"reviews": [5, "Response A errs."]}, {"x_side": ["A"]}, {"y_side": "A"}]
    write_pairs("meta.jsonl", [replace(pair(n), meta=meta) for n, meta in enumerate(metas)])
    _main(["swap", "meta.jsonl", "o.jsonl"])
    found = [each.meta for each in read_pairs("o.jsonl")]
    assert found == [{"reviews": 5}, {"reviews": [5, "Response B errs."]}, {"x_side": ["A"]}, {"y_side": "B"}]
