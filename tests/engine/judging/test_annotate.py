"""Golden judgments: the kept and the rejected ones, continuation after a kill, and the budget."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import Future

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
        (["pairs=x", "output=x"], "is the pairs file itself"),
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
