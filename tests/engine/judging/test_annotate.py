"""Golden judgments: the kept and the rejected ones, continuation after a kill, and the budget."""

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import Future
from contextlib import suppress

import psutil
import pytest
from ralign.engine.data.pairs import Pair, read_pairs
from ralign.engine.judging.annotate import (
    GOLDEN,
    AnnotateConfig,
    AnnotatorConfig,
    Journal,
    Writer,
    _main,
    annotate,
    load_template,
    reason_to_reject,
    render,
)
from ralign.engine.judging.judge import Judge, JudgeStopped, Reply
from ralign.engine.runtime.append_log import LineLog
from ralign.engine.runtime.errors import UserError

COMMAND = [sys.executable, "-c", "from ralign.engine.judging.annotate import main; main()"]


def make_pair(number=0, label="A", behaviour="", **changes):
    record = {
        "id": f"p{number}",
        "source": "test",
        "conversations": [{"role": "user", "content": f"[{behaviour or f'box {label}'}] prompt {number}"}],
        "response_A": "first text",
        "response_B": "second {label} text",
        "gt_label": label,
        "gt_judgment": "",
    }
    return Pair(**(record | changes))


def write(path, pairs):
    fields = ("id", "source", "conversations", "response_A", "response_B", "gt_label")
    with path.open("w") as file:
        for pair in pairs:
            record = {name: getattr(pair, name) for name in fields}
            file.write(
                json.dumps(record | ({"gt_judgment": pair.gt_judgment} if pair.gt_judgment else {})) + "\n"
            )


@pytest.fixture
def job(fake_endpoint, tmp_path):
    """(config, server) for these pairs."""

    def make(pairs, *, latency_s=0.0, **options):
        write(tmp_path / "pairs.jsonl", pairs)
        server = fake_endpoint(latency_s)
        annotator = {"concurrency": 8, "num_retries": 0, "timeout_s": 20.0} | options.pop("annotator", {})
        config = AnnotateConfig(
            pairs=str(tmp_path / "pairs.jsonl"),
            output=str(tmp_path / "golden.jsonl"),
            annotator=AnnotatorConfig(model="m", base_url=server.url, **annotator),
            **options,
        )
        return config, server

    return make


@pytest.mark.parametrize(
    ("text", "label", "reason"),
    [
        (r"A is right about it. \boxed{A}", "A", None),
        (r"<think>\boxed{B}</think> A is right. \boxed{A}", "A", None),
        (r"\boxed{A} and so \boxed{A}", "A", None),
        (r"\boxed{B}", "A", "verdict is not the label"),
        (r"\boxed{A} or \boxed{B}", "A", "two verdicts"),
        (r"<think>\boxed{A}</think> A it is.", "A", "no verdict"),
        (r"As the given label says, \boxed{A}", "A", "reveals the label"),
        (r"I was told that A wins. \boxed{A}", "A", "reveals the label"),
        ("A", "A", "no verdict"),
    ],
)
def test_a_judgment_is_kept_only_if_its_verdict_is_the_label(text, label, reason):
    assert reason_to_reject(Reply(text=text), label) == reason


@pytest.mark.parametrize(
    "text",
    [
        "As the given label says, B errs.",
        "The ground-truth label is A.",
        "This agrees with the gold verdict.",
        "I was told that A wins.",
        "I was told which response is better.",
        "We were informed that Response B is the better one.",
        "We are given the preferred response, so the rest is easy.",
        "Because it is known that Response A is better, its slip weighs less.",
        "The outcome was known in advance.",
        "The label was provided.",
        "Experts found Response A the better one.",
        "The experts' verdict rests on the date.",
        "Reviewers preferred Response A for its tone.",
        "The reviewers' notes mention the missing source.",
        "As the notes of the human reviewers say, B errs.",
        "I was asked to explain why A wins.",
    ],
)
def test_a_judgment_that_reveals_the_label_is_rejected(text):
    assert reason_to_reject(Reply(text=f"{text} \\boxed{{A}}"), "A") == "reveals the label"


@pytest.mark.parametrize(
    "text",
    [
        "Response A lists five items as instructed, while Response B lists six.",
        "Since it keeps to three lines as instructed, Response A is better.",
        "The user was told that the shop closes at six; Response B has it at eight.",
        "I was told by no source that the bridge fell, and neither was Response A.",
        "Response B compares the estimate with the ground truth of 42 cm.",
        "Response A says that human reviewers look at each report.",
        "Experts found the tomb in 1922; Response B says 1932.",
        "Experts found a tomb and preferred a slower dig, says Response A.",
        "The correct label of the picture is cat, as both responses say.",
        "Response A names an expert and gives the outcome of the trial.",
        "The known outcome of the war is left out by Response B.",
        "The function returns the given labels; Response B drops one label.",
        "Response A explains what reviewers look for in a paper.",
        "The character in Response A has been told a secret.",
    ],
)
def test_the_same_words_in_their_usual_sense_are_kept(text):
    assert reason_to_reject(Reply(text=f"{text} \\boxed{{A}}"), "A") is None


class _Breaks(Judge):
    """A judge that ends every future with `end`."""

    def __init__(self, end):
        self.end = end

    def submit(self, request):
        future = Future()
        self.end(future)
        return future


def test_an_answer_that_is_cancelled_counts_as_failed_and_an_error_ends_the_run(tmp_path):
    config = AnnotateConfig(output=str(tmp_path / "o"), annotator=AnnotatorConfig(model="m", concurrency=2))
    with Journal(tmp_path / "j") as journal:
        writer = Writer(config, load_template("golden"), journal)
        pairs = [make_pair(n) for n in range(5)]
        assert list(writer.run(_Breaks(Future.cancel), pairs)) == ["failed"] * 5
        assert writer.failed == {"cancelled": 5}
        with pytest.raises(RuntimeError, match="broken"):
            list(writer.run(_Breaks(lambda future: future.set_exception(RuntimeError("broken"))), pairs))


def test_an_answer_that_was_cut_off_is_rejected():
    assert reason_to_reject(Reply(text=r"\boxed{A}", finish_reason="length"), "A") == "cut off"


def test_the_prompt_holds_the_label_and_the_pair():
    pair = make_pair(label="B", meta={"reviews": ["B is sound."]})
    prompt = render(GOLDEN, pair)
    assert r"\boxed{B}" in prompt and "Response B the better one" in prompt and "- B is sound." in prompt
    assert prompt.count("first text") == prompt.count("second {label} text") == 1


def test_kept_judgments_are_written_in_order_and_rejected_ones_counted(job):
    pairs = [make_pair(n, "AB"[n % 2]) for n in range(20)]
    pairs += [
        make_pair(20, behaviour="box B"),
        make_pair(21, behaviour="prose"),
        make_pair(22, behaviour="500"),
    ]
    pairs.append(make_pair(23, behaviour="500", gt_judgment=r"had one \boxed{A}"))
    config, server = job(pairs)
    summary = annotate(config)
    kept = read_pairs(config.output)
    assert [pair.id for pair in kept] == [f"p{n}" for n in range(20)] + ["p23"]
    assert all(f"\\boxed{{{pair.gt_label}}}" in pair.gt_judgment for pair in kept)
    assert kept[-1].gt_judgment == r"had one \boxed{A}"
    assert summary == json.loads(open(f"{config.output}.summary.json").read())
    assert (summary["num_pairs"], summary["num_kept"], summary["num_rejected"]) == (24, 21, 2)
    assert summary["rejected"] == {"verdict is not the label": 1, "no verdict": 1}
    assert (summary["num_failed"], summary["num_left"]) == (1, 1)
    # Rejected judgments were requested twice; an answered call has 70 + 30 tokens.
    assert server.stats()["num_asked"] == 20 + 2 * 2 + 1
    assert summary["tokens"] == {"prompt": 70 * 24, "answer": 30 * 24}


def test_the_next_run_repeats_only_failed_calls(job):
    config, server = job(
        [make_pair(0), make_pair(1, behaviour="500*1] [box A"), make_pair(2, behaviour="box B")]
    )
    assert annotate(config)["num_failed"] == 1
    num_asked = server.stats()["num_asked"]
    summary = annotate(config)
    assert server.stats()["num_asked"] == num_asked + 1
    assert (summary["num_kept"], summary["num_rejected"], summary["num_failed"]) == (2, 1, 0)


def test_another_sampling_is_requested_again(job):
    config, server = job([make_pair(0)])
    annotate(config)
    config.annotator.temperature = 0.9
    annotate(config)
    assert server.stats()["num_asked"] == 2


def test_a_killed_run_continues_without_repeated_requests(job):
    pairs = [make_pair(n) for n in range(60)]
    config, server = job(pairs, latency_s=0.05)
    argv = [
        f"pairs={config.pairs}",
        f"output={config.output}",
        "annotator.model=m",
        "annotator.concurrency=4",
    ]
    argv.append(f"annotator.base_url={server.url}")
    process = subprocess.Popen([*COMMAND, *argv], env={**os.environ, "OMP_NUM_THREADS": "1"})
    journal = f"{config.output}.journal.jsonl"
    while not os.path.exists(journal) or open(journal).read().count("\n") < 15:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not os.path.exists(config.output)
    with open(journal, "a") as file:
        file.write('{"key": "torn')
    summary = annotate(config)
    assert summary["num_kept"] == 60
    assert server.stats()["num_asked"] <= 60 + 4  # the requests under way at the kill
    assert summary["tokens"]["prompt"] == 60 * 70


def test_a_spent_budget_writes_the_judgments_so_far_and_a_larger_one_continues(job):
    config, server = job(
        [make_pair(n) for n in range(40)], annotator={"budget_tokens": 1000, "concurrency": 2}
    )
    with pytest.raises(JudgeStopped, match="budget of 1000 tokens"):
        annotate(config)
    num_kept = len(read_pairs(config.output))
    assert 7 <= num_kept <= 10 and server.stats()["num_asked"] == num_kept
    with pytest.raises(JudgeStopped):
        annotate(config)
    config.annotator.budget_tokens = 10_000
    assert annotate(config)["num_kept"] == 40
    assert server.stats()["num_asked"] <= 41


def test_ids_that_contain_each_other_have_keys_of_their_own(tmp_path):
    config = AnnotateConfig(annotator=AnnotatorConfig(model="m"))
    with Journal(tmp_path / "j") as journal:
        writer = Writer(config, GOLDEN, journal)
        ids = ["p", "p\tswapped", "p swapped", 'p", "prompt": "', "P", "p\x00"]
        assert len({writer.key(make_pair(id=name)) for name in ids}) == len(ids)


def test_answers_from_the_cache_cost_nothing(job, tmp_path):
    config, server = job([make_pair(n) for n in range(4)], annotator={"cache": str(tmp_path / "cache")})
    assert annotate(config)["tokens"] == {"prompt": 280, "answer": 120}
    config.output = str(tmp_path / "again.jsonl")
    summary = annotate(config)
    assert summary["num_kept"] == 4 and summary["tokens"] == {"prompt": 0, "answer": 0}
    assert server.stats()["num_asked"] == 4


def test_a_failed_call_that_cost_tokens_counts_in_the_next_run_too(fault_server, faults, tmp_path):
    charged = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    fault_server.faults = {"charged": faults.Fault(faults.http(200, charged))}
    write(tmp_path / "pairs.jsonl", [make_pair(behaviour="fault charged")])
    config = AnnotateConfig(
        pairs=str(tmp_path / "pairs.jsonl"),
        output=str(tmp_path / "o"),
        annotator=AnnotatorConfig(model="m", base_url=fault_server.url, num_retries=1, max_backoff_s=0.01),
    )
    assert annotate(config)["tokens"] == {"prompt": 18, "answer": 2}
    assert annotate(config)["tokens"] == {"prompt": 36, "answer": 4}
    assert fault_server.num_asked["charged"] == 4


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [("500", "all 2 calls failed .*status 500"), ("prose", "no pair of .* got a golden judgment")],
)
def test_a_run_that_makes_nothing_ends_with_a_mistake(job, behaviour, message):
    config, server = job([make_pair(n, behaviour=behaviour) for n in range(2)])
    argv = [f"pairs={config.pairs}", f"output={config.output}", "annotator.model=m"]
    argv += [f"annotator.base_url={server.url}", "annotator.num_retries=0"]
    with pytest.raises(UserError, match=message):
        _main(argv)


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "p0"}',
        '{"settings": null}',
        "5",
        '{"key": "k", "id": "p", "reason": null, "judgment": 5, "tokens": [1, 1]}',
        '{"key": "k", "id": "p", "reason": null, "judgment": "A", "tokens": "no"}',
        '{"key": "k", "id": "p", "reason": null, "judgment": "A", "tokens": [1]}',
        '{"key": "k", "id": "p", "reason": null, "judgment": "A", "tokens": [true, -1]}',
        '{"key": "k", "id": "p", "reason": null, "judgment": "A", "tokens": [1, 1%s]}' % ("0" * 400),
        '{"key": 1, "id": "p", "reason": null, "judgment": "A", "tokens": [1, 1]}',
        '{"key": "k", "id": "p", "reason": 3, "judgment": "A", "tokens": [1, 1]}',
        '{"id": "p", "failed": null, "tokens": [1, 1]}',
        "[" * 5000,
    ],
)
def test_a_journal_with_another_line_is_refused(tmp_path, line):
    good = '{"key": "k", "id": "p", "reason": null, "judgment": "A", "tokens": [1, 1]}'
    (tmp_path / "j").write_text(f"{good}\n{line}\n")
    with pytest.raises(UserError, match="j:2: not a line of this journal"):
        Journal(tmp_path / "j")


def test_a_full_disk_is_one_mistake_and_the_same_command_goes_on(job, monkeypatch):
    config, server = job([make_pair(n) for n in range(12)], annotator={"concurrency": 1})
    real, num_written = LineLog.add, iter(range(100))

    def fill(self, line):
        if next(num_written) == 5:
            raise UserError("cannot write the journal: No space left on device")
        real(self, line)

    monkeypatch.setattr(LineLog, "add", fill)
    with pytest.raises(UserError, match="No space left"):
        annotate(config)
    assert not os.path.exists(config.output)
    assert annotate(config)["num_kept"] == 12
    assert server.stats()["num_asked"] <= 13 + 1  # the answer that was lost, and one under way


BROKEN = ("garbage", "length", "header", "retry", "denied", "echo", "html", "empty", "huge", "redirect")


def broken_replies(faults, request):
    """Responses of all kinds that contain the key which the request carries."""
    key = re.search(rb"authorization: bearer (\S+)", request, re.IGNORECASE)[1].decode()
    refused = {"error": {"message": f"Incorrect API key provided: {key}. Bearer {key}"}}
    good = faults.completion(f"your key is {key} \\boxed{{A}}", finish_reason=key)
    return {
        "garbage": f"\x00{key}\r\n\r\n".encode(),
        "length": f"HTTP/1.1 200 OK\r\ncontent-length: -{key}\r\n\r\n{{}}".encode(),
        "header": f"HTTP/1.1 200 OK\r\n{key}\x00: {key}\r\n{'x' * 99999}: 1\r\n\r\n".encode(),
        "retry": faults.http(429, refused, f"retry-after: \u00b2{key}"),
        "denied": faults.http(500, refused),
        "echo": faults.http(200, good),
        "html": faults.http(502, f"<html>{'x' * 70}{key}{'x' * 500}".encode()),
        "empty": faults.http(200, {"choices": [], "note": key, "usage": {"prompt_tokens": 10**400}}),
        "huge": faults.http(200, key.encode() * 100_000),
        "redirect": faults.http(307, b"", f"location: http://{key}@{key}/{key}"),
    }


@pytest.mark.parametrize("num_processes", [0, 1], ids=["thread", "process"])
def test_the_key_is_in_no_artefact_of_a_run_with_broken_replies(
    fault_server, faults, tmp_path, num_processes
):
    key = "sk-canary-98a4c1e0"
    for name in BROKEN:
        fault_server.faults[name] = lambda request, name=name: faults.Fault(
            broken_replies(faults, request)[name], then="close"
        )
    unauthorized = {"error": {"message": f"no such key: {key}", "code": 401}}
    fault_server.faults["stop"] = faults.Fault(faults.http(200, unauthorized))
    pairs = [make_pair(n, behaviour=f"fault {name}") for n, name in enumerate(BROKEN)]
    write(tmp_path / "pairs.jsonl", pairs)
    write(tmp_path / "stop.jsonl", [make_pair(behaviour="fault stop")])
    texts, commands = [], set()
    for name in ("pairs.jsonl", "stop.jsonl"):
        argv = [f"pairs={name}", f"output=golden-{name}", "annotator.model=m", "annotator.cache=cache"]
        argv += [f"annotator.base_url={fault_server.url}", f"annotator.num_processes={num_processes}"]
        argv += ["annotator.timeout_s=20", "annotator.num_retries=1", "annotator.max_backoff_s=0.1"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": key, "PYTHONASYNCIODEBUG": "1"}
        program = subprocess.Popen(
            [*COMMAND, *argv], env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        with program:
            while program.poll() is None:
                with suppress(psutil.Error):
                    process = psutil.Process(program.pid)
                    commands.update(" ".join(p.cmdline()) for p in (process, *process.children()))
                time.sleep(0.05)
            texts.append(program.stdout.read())
        assert program.returncode == (0 if name == "pairs.jsonl" else 2), texts[-1].decode()
        assert b"Traceback" not in texts[-1], texts[-1].decode()
    assert b"no such key: ***" in texts[-1] and set(BROKEN) <= set(fault_server.num_asked)
    assert any("client_process" in command for command in commands) == bool(num_processes)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".jsonl", ".json", ".sqlite"}
    written = [*texts, *(path.read_bytes() for path in files), *(command.encode() for command in commands)]
    assert not any(key.encode() in text for text in written)


def test_one_process_an_output(tmp_path):
    with Journal(tmp_path / "j"), pytest.raises(UserError, match="in use"):
        Journal(tmp_path / "j")
    (tmp_path / "j").write_text('{"other": 1}\n')
    with pytest.raises(UserError, match="j:1"):
        Journal(tmp_path / "j")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pairs is missing"),
        (["pairs=x", "output=x"], "cannot write x: it is also an input"),
        (["pairs=x", "output=/"], "cannot write /: it is a folder"),
        (["pairs=x", "output=/dev/null"], "cannot write /dev/null: it is not a regular file"),
        (["pairs=/dev/zero", "output=y"], "cannot read /dev/zero: it is not a regular file"),
        (["pairs=x", "output=y"], "annotator.model is missing"),
        (["pairs=x", "output=y", "annotator.model=m"], "annotator.base_url"),
        (
            [
                "pairs=x",
                "output=y",
                "annotator.model=m",
                "annotator.base_url=http://h/v1",
                "annotator.budget_cost=1",
            ],
            "price",
        ),
        (
            ["pairs=missing.jsonl", "output=y", "annotator.model=m", "annotator.base_url=http://h/v1"],
            "cannot read",
        ),
        (["pairs=x", "output=y", "num_tries=0"], "num_tries must be at least 1"),
    ],
)
def test_mistakes_are_refused(tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=message):
        _main(argv)


def test_a_mistake_ends_the_command_with_one_line_and_status_2(tmp_path):
    done = subprocess.run([*COMMAND, "pairs=x"], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 2 and "output is missing" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_template_needs_its_placeholders(tmp_path):
    (tmp_path / "t").write_text("{prompt} {response_A} {label}")
    with pytest.raises(UserError, match=r"\{response_B\}"):
        load_template(str(tmp_path / "t"))
