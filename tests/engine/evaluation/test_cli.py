"""ralign-eval: what its commands refuse, in one line and before a request, and what hostile files can and cannot do."""

import json
import os
import sys
from pathlib import Path

import pytest
from ralign.engine.evaluation import cli
from ralign.engine.evaluation.cli import _main
from ralign.engine.report import plots
from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import file_name

METARM = """
from ralign.engine.judging.metarm import Outcome, RuleBased
from ralign.engine.judging.metarms import MetaRMKind


class Lenient(RuleBased):
    def outcome(self, golden, judgment):
        return Outcome.CORRECT


LENIENT = MetaRMKind(open=lambda config, context: Lenient())
"""
ANSI = "\x1b[31mred\x1b]0;title\x07"


def pair(id, **fields):
    turns = [{"role": "user", "content": "q"}]
    texts = {"response_A": "good", "response_B": "bad", "gt_label": "A", "gt_judgment": "B errs. \\boxed{A}"}
    return {"id": id, "source": "s", "conversations": turns, **texts, **fields}


def answer(id, *, model="m", **fields):
    return {"id": id, "model_judgment": f"of {id} \\boxed{{A}}", "meta": {"model_name": model}, **fields}


def judged(id, *, model="m", **fields):
    review = {"model_pred": "A", "metarm_verdict": "Correct", "metarm_score": 1.0}
    return {**pair(id), **answer(id, model=model), **review, **fields}


def write(path, *rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), "utf-8")
    return str(path)


def rows(path):
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def run(*more, pairs="pairs.jsonl", model="judged:answers.jsonl", out="out"):
    command = ["run", "--pairs", pairs, "--model", model, "--metarm", "my_metarm.py:LENIENT", "--out", out]
    _main([*command, "--bootstrap=10", *more])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with files for the commands below."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plots, "_DPI", 20)
    (tmp_path / "my_metarm.py").write_text(METARM)
    write("pairs.jsonl", pair("p0"), pair("p1"))
    write("answers.jsonl", answer("p0"), answer("p1"))
    write("judged.jsonl", judged("p0"), judged("p1"))
    write("twice.jsonl", answer("5"), {**answer("5"), "id": 5})
    write("repeated.jsonl", json.dumps(judged("p0")).replace('"model_pred"', '"id": "p1", "model_pred"'))
    write("hf/config.json", "5")
    os.mkdir("folder")
    os.mkfifo("pipe")
    (tmp_path / "file").touch()
    return tmp_path


RUN = [
    "run",
    "--pairs=pairs.jsonl",
    "--model=judged:answers.jsonl",
    "--metarm=my_metarm.py:LENIENT",
    "--out=out",
]
SCORE = ["score", "judged.jsonl", "--bootstrap=10"]
MISTAKES = [
    ([*SCORE, "--seed=-1"], "argument --seed: '-1' is not a whole number of at least 0"),
    ([*SCORE, "--bootstrap=99999999999"], "'99999999999' is not a whole number from 1 to 1000000"),
    ([*SCORE, "--max-bad-lines=-1"], "argument --max-bad-lines: '-1' is not a whole number"),
    ([*SCORE, "--released=file"], "cannot write into file: it is not a folder"),
    ([*SCORE, "--out=file"], "cannot write into file: it is not a folder"),
    ([*SCORE, "--out=file/a"], "cannot write file/a: file is not a folder"),
    (["score", "folder"], "cannot read folder: it is a folder"),
    (["score", "/dev/zero"], "cannot read /dev/zero: it is not a regular file"),
    (
        ["score", "pipe", "none"],
        "2 mistakes: cannot read pipe: it is not a regular file; cannot read none: No such",
    ),
    (["score", "x" * 5000], "File name too long"),
    (["score", "judged.jsonl", "judged.jsonl"], "has the test 'judged' from another file already"),
    (["score", "repeated.jsonl"], "repeated.jsonl:1: unreadable JSON (the key 'id' is there twice)"),
    ([*RUN, "--seed=-1"], "argument --seed: '-1' is not a whole number"),
    ([*RUN, "--temperature=nan"], "argument --temperature: 'nan' is not a finite number of at least 0"),
    ([*RUN, "--timeout-s=inf"], "argument --timeout-s: 'inf' is not a finite number above 0"),
    ([*RUN, "--retries=-1"], "argument --retries: '-1' is not a whole number"),
    ([*RUN, "--price", "nan", "1"], "argument --price: 'nan' is not a finite number"),
    ([*RUN, "--metarm-price", "1", "-1"], "argument --metarm-price: '-1' is not a finite number"),
    ([*RUN, "--budget-cost=inf"], "argument --budget-cost: 'inf' is not a finite number"),
    (
        [*RUN, "--gpu-memory-utilization=nan"],
        "argument --gpu-memory-utilization: 'nan' is not a finite number",
    ),
    ([*RUN, "--metarm-graded-threshold=2"], "'2' is not a finite number of at least 0 and at most 1"),
    ([*RUN, "--released=pipe"], "cannot write into pipe: it is not a folder"),
    ([*RUN, "--out=file"], "cannot write out"),
    ([*RUN, "--model=hf"], "hf/config.json: expected a JSON object, got int"),
    ([*RUN, "--model=judged:twice.jsonl"], "twice.jsonl:2: id '5' was already used"),
    (
        [
            *RUN,
            "--pairs",
            "pairs.jsonl",
            "none",
            "--model",
            "none",
            "judged:pipe",
            "--template=none",
            "--metarm=zz",
        ],
        "5 mistakes: the template 'none'",
    ),
    (["metarm", "pairs.jsonl", "--cases=pairs.jsonl"], "cannot write pairs.jsonl: it is also an input"),
    (["score", "pairs.jsonl", "--seed=-1"], "argument --seed: '-1' is not a whole number"),
]


def label(value):
    return " ".join(value)[-50:] if isinstance(value, list) else ""


@pytest.mark.parametrize(("argv", "message"), MISTAKES, ids=label)
def test_every_mistake_is_one_line_and_writes_nothing(folder, monkeypatch, capsys, argv, message):
    if argv[-1] == "--out=file":
        message = "cannot write file/report: file is not a folder" if argv[0] == "run" else message
    before = sorted(os.walk("."))
    monkeypatch.setattr(sys, "argv", ["ralign-eval", *argv])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    shown = capsys.readouterr()
    assert ended.value.code == 2 and shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith("error: ") and message in shown.err
    assert sorted(os.walk(".")) == before


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("conversations", "hello", "conversations must be turns"),
        ("conversations", [{"role": "user"}], "conversations must be turns"),
        ("conversations", [{"role": "user", "content": ["x"]}], "conversations must be turns"),
        ("gt_judgment", 5, "gt_judgment must be text or null, got int"),
        ("response_A", [], "response_A must be text or null, got list"),
        ("model_judgment", {}, "model_judgment must be text or null, got dict"),
        ("metarm_analysis", True, "metarm_analysis must be text or null, got bool"),
        ("meta", [1], "meta must be an object or null, got list"),
        ("id", None, "id must be text or a number"),
        ("model_pred", ["A"], "model_pred must be A, B or null"),
        ("metarm_verdict", {}, "unknown metarm_verdict {}"),
    ],
)
def test_a_judged_line_of_another_shape_is_named(folder, field, value, reason):
    write("bad.jsonl", judged("p0") | {field: value})
    with pytest.raises(UserError, match="1 bad lines.*\\n  bad.jsonl:1: " + reason.replace("{}", "\\{\\}")):
        _main(["score", "bad.jsonl", "--out", "report", "--released", "released"])


HOSTILE = [
    "..", ".", "/", "../../etc", "a/b", "\0", "\ud800", "\n", ANSI, "[red]", "[/red]", "<script>", "x" * 300, "a=b",
    "=", "%2E", "-x", "~", "a\\b", "é", " ",
]  # fmt: skip


@pytest.mark.parametrize("model", HOSTILE, ids=repr)
def test_any_model_name_stays_in_its_own_folder_and_off_the_terminal(folder, capsys, model):
    write("named.jsonl", answer("p0", model=model), answer("p1", model=model))
    outside = sorted(os.listdir("."))
    run(model="judged:named.jsonl")
    name = file_name(model.replace("/", "_"))
    for part in ("judgments", "work"):
        assert os.listdir(folder / "out" / part) == [name]
    assert {row["meta"]["model_name"] for row in rows(f"out/judgments/{name}/pairs.jsonl")} == {
        model.replace("/", "_")
    }
    assert sorted(os.listdir(".")) == sorted([*outside, "out"])
    shown = "".join(capsys.readouterr())
    assert not set("\x1b\x07\0") & set(shown)
    before = (folder / "out" / "judgments" / name / "pairs.jsonl").read_bytes()
    run(model="judged:named.jsonl")  # it continues in the same folder
    assert (folder / "out" / "judgments" / name / "pairs.jsonl").read_bytes() == before


def test_two_names_for_one_folder_are_refused(folder):
    write("other.jsonl", answer("p0", model="a/b"), answer("p1", model="a/b"))
    write("third.jsonl", answer("p0", model="a_b"), answer("p1", model="a_b"))
    with pytest.raises(UserError, match="judged:third.jsonl: another model is named a_b too"):
        _main([*RUN[:2], "--model", "judged:other.jsonl", "judged:third.jsonl", *RUN[3:]])


def test_released_names_never_collide_and_are_never_empty(folder):
    write("one.jsonl", judged("p0", model="a b"))
    write("two.jsonl", judged("p0", model="a_b"))
    os.mkdir("other")
    os.rename("two.jsonl", "other/one.jsonl")
    with pytest.raises(UserError, match="would both be one__a_b.jsonl"):
        _main(["score", "one.jsonl", "other/one.jsonl", "--bootstrap=10", "--released", "released"])
    for model in ("é", "..", "///"):
        write("one.jsonl", judged("p0", model=model))
        with pytest.raises(UserError, match=f"{model!r} has no letter or digit"):
            _main(["score", "one.jsonl", "--bootstrap=10", "--released", "released"])
    assert not os.path.exists("released")


def test_inputs_are_never_outputs(folder):
    run()
    path = "out/judgments/m/pairs.jsonl"
    before = Path(path).read_bytes()
    with pytest.raises(UserError, match=f"cannot write {path}: it is also an input"):
        run(model=f"judged:{path}")
    _main(["score", path, "--bootstrap=10", "--released", "released"])
    with pytest.raises(UserError, match="cannot write released/pairs__m.jsonl: it is also an input"):
        _main(["score", "released/pairs__m.jsonl", "--bootstrap=10", "--released", "released"])
    write("report/metrics.csv", judged("p0"))
    with pytest.raises(UserError, match="cannot write report/metrics.csv: it is also an input"):
        _main(["score", "report/metrics.csv", "--bootstrap=10", "--out", "report"])
    assert Path(path).read_bytes() == before


def test_ids_with_tabs_have_their_own_answers_in_both_orders(folder):
    ids = ["p", "p\tswapped", "p\\tswapped", "p\\\tswapped", "..", ANSI]
    write("pairs.jsonl", *[pair(id) for id in ids])
    write("answers.jsonl", *[answer(id, model_judgment_swapped=f"swapped {id} \\boxed{{B}}") for id in ids])
    run("--both-orders")
    found = rows("out/judgments/m/pairs.jsonl")
    assert [row["id"] for row in found] == ids
    assert [row["model_judgment"] for row in found] == [f"of {id} \\boxed{{A}}" for id in ids]
    assert [row["model_judgment_swapped"] for row in found] == [f"swapped {id} \\boxed{{B}}" for id in ids]


def test_a_lone_surrogate_in_an_answer_is_kept(folder):
    write("answers.jsonl", answer("p0", model_judgment="\ud800 \\boxed{A}"), answer("p1"))
    run()
    assert rows("out/judgments/m/pairs.jsonl")[0]["model_judgment"] == "\ud800 \\boxed{A}"
    _main(
        [
            "score",
            "out/judgments/m/pairs.jsonl",
            "--bootstrap=10",
            "--out",
            "report",
            "--released",
            "released",
        ]
    )
    assert rows("released/pairs__m.jsonl")[0]["model_judgment"] == "\ud800 \\boxed{A}"


def test_no_escape_sequence_of_a_judged_file_reaches_the_terminal(folder, capsys):
    fields = {"source": {"subset": ANSI}, "model": f"[/b]{ANSI}"}
    write("a.jsonl", judged("p0", **fields), judged("p1", model=fields["model"]), judged("p0", model="n"))
    _main(["score", "a.jsonl", "--bootstrap=10", "--out", "report"])
    shown = "".join(capsys.readouterr())
    assert "a: \\x1b[31mred" in shown and "[/b]\\x1b[31mred" in shown
    assert not set("\x1b\x07") & set(shown)


@pytest.mark.parametrize("kind", ["answers", "reviews"])
@pytest.mark.parametrize(
    "line", ['{"key": "p0"}', '{"key": "p9", "text": 5}', '{"settings": null}', "5", "[" * 9999]
)
def test_a_journal_line_that_is_no_record_is_named(folder, kind, line):
    run()
    path = folder / "out" / "work" / "m" / f"pairs.{kind}.jsonl"
    whole = path.read_text()
    for text, number in ((f"{whole}{line}\n", 4), (f"{line}\n", 1)):
        path.write_text(text)
        with pytest.raises(UserError, match=f"pairs.{kind}.jsonl:{number}: .*; remove the line, or the file"):
            run()


@pytest.mark.parametrize(
    "suffix", ["answers.jsonl", "pairs.jsonl", "summary.json", "metrics.csv", "index.html"]
)
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder, monkeypatch, suffix):
    """The disk is full when this file is put on it."""
    run(out="whole")
    sync = os.fsync

    def full(descriptor):
        if suffix in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=f"cannot write out/.*{suffix}: No space left on device"):
            run()
    assert not list(folder.rglob("*.part"))
    run()
    for path in (folder / "whole").rglob("*.jsonl"):
        assert (folder / "out" / path.relative_to(folder / "whole")).read_bytes() == path.read_bytes()
