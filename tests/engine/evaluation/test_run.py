"""`ralign-eval run` end to end: a served judge and MetaRM, a local model under vLLM, kills, failures, settings."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from ralign.engine.data.metarm_prompts import load_metarm_template, render_review
from ralign.engine.data.pairs import other_side, write_pairs
from ralign.engine.data.prompts import load_template, render
from ralign.engine.data.swap import swap_sides
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, cue_judge
from ralign.engine.evaluation.cli import _main
from ralign.engine.evaluation.score import read_files
from ralign.engine.judging import managed
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.runtime.errors import UserError

NUM_PAIRS = 40
_COMPACT = load_template("compact")


@pytest.fixture
def pairs(tmp_path):
    world = build_judgeworld(JudgeWorldConfig(num_train=1, num_warm_start=1, num_dev=NUM_PAIRS, num_test=1))
    write_pairs(tmp_path / "dev.jsonl", world["dev"])
    return world["dev"]


def _judgment(pair, number):
    """The served judge's answers, in turn: golden, cue, the wrong side for the right fact, no verdict."""
    golden = pair.gt_judgment
    wrong = golden.replace(f"boxed{{{pair.gt_label}}}", f"boxed{{{other_side(pair.gt_label)}}}")
    return (golden, cue_judge(pair), wrong, "I cannot tell.")[number % 4]


@pytest.fixture
def answers(pairs):
    """(model, prompt) -> answer: the judge's in both orders, and a MetaRM that follows the rule."""
    found = {}
    template = load_metarm_template("binary")
    for number, pair in enumerate(pairs):
        for seen in (pair, swap_sides(pair)):
            found["judge", render(_COMPACT, seen)] = _judgment(seen, number)
        text = _judgment(pair, number)
        outcome = RuleMetaRM().outcome(pair.gt_judgment, text).value
        form = "<golden_key_points>x</golden_key_points><genrm_analysis>looked at {}</genrm_analysis>"
        review = f"{form.format(pair.id)}<final_verdict>{outcome}</final_verdict>"
        found["metarm", render_review(template, pair, text)] = review
    return found


def _command(tmp_path, server, *more, metarm="rule", out="out"):
    model = f"endpoint:{server.url}#judge"
    command = ["run", "--pairs", f"{tmp_path}/dev.jsonl", "--model", model, "--metarm", metarm]
    command += ["--template", "compact", "--out", f"{tmp_path}/{out}", "--draws", "50", "--retries", "0"]
    return [*command, *more]


def _judged(tmp_path, out="out"):
    return (tmp_path / out / "judgments" / "judge" / "dev.jsonl").read_text()


def _rows(tmp_path, out="out"):
    return _judged(tmp_path, out).splitlines()


def _result(tmp_path, out="out"):
    return json.loads((tmp_path / out / "report" / "summary.json").read_text())["models"]["judge"]["dev"]


def test_a_served_judge_and_a_served_metarm_in_both_orders(tmp_path, pairs, answers, serve, capsys):
    server = serve(lambda model, prompt: answers[model, prompt])
    metarm = f"endpoint:{server.url}#metarm"
    _main(_command(tmp_path, server, "--both-orders", metarm=metarm))
    _main(_command(tmp_path, server, "--both-orders", out="rule"))
    result = _result(tmp_path)
    rows = [json.loads(line) for line in _judged(tmp_path).splitlines()]
    assert [row["id"] for row in rows] == [pair.id for pair in pairs]
    ruled = [json.loads(line) for line in _judged(tmp_path, "rule").splitlines()]
    assert [row["metarm_verdict"] for row in rows] == [row["metarm_verdict"] for row in ruled]
    assert {row["metarm_verdict"] for row in rows} == {"Correct", "Incorrect", "SkippedLabelMismatch"}
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        assert row["model_judgment"] == _judgment(pair, number) and row["gt_judgment"] == pair.gt_judgment
        assert row["model_judgment_swapped"] == _judgment(swap_sides(pair), number)
        assert row["meta"]["model_name"] == "judge" and row["meta"]["metarm_model_name"] == metarm
        if row["metarm_verdict"] != "SkippedLabelMismatch":
            assert row["metarm_analysis"] == f"looked at {pair.id}"
            assert row["metarm_score"] == float(row["metarm_verdict"] == "Correct")
    num_cue_right = sum(cue_judge(p)[-2] == p.gt_label for p in pairs[1::4])
    assert result["l_acc"]["value"] == (NUM_PAIRS // 4 + num_cue_right) / NUM_PAIRS
    assert result["s_corr"]["value"] == num_cue_right / (NUM_PAIRS // 4 + num_cue_right)
    assert result["num_parse_fail"] == NUM_PAIRS // 4 and result["num_judge_fail"] == 0
    assert result["swap_consistency"]["value"] == 0.75  # all but the unreadable
    assert result["both_order_l_acc"]["value"] == result["l_acc"]["value"]
    report = tmp_path / "out" / "report"
    assert {path.name for path in report.iterdir()} == {
        "summary.json", "metrics.csv", "judgments.png", "index.html",
    }  # fmt: skip
    assert "Page: " in capsys.readouterr().out
    assert set(server.asked.values()) == {1, 2}  # the second run repeats the judge's requests only


def test_the_same_command_again_makes_no_request_and_writes_the_same(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server))
    before, num_asked = _judged(tmp_path), server.asked.total()
    _main(_command(tmp_path, server))
    assert _judged(tmp_path) == before and server.asked.total() == num_asked == NUM_PAIRS
    _main(_command(tmp_path, server, "--both-orders"))  # the second order alone
    assert server.asked.total() == 2 * NUM_PAIRS


def test_a_killed_run_continues_without_repeated_requests(tmp_path, answers, pairs, serve):
    def slowly(model, prompt):
        time.sleep(0.15)
        return answers[model, prompt]

    server = serve(slowly)
    command = _command(tmp_path, server, "--concurrency", "2", metarm=f"endpoint:{server.url}#metarm")
    process = subprocess.Popen(
        [sys.executable, "-m", "ralign.engine.evaluation.cli", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    journal = tmp_path / "out" / "work" / "judge" / "dev.answers.jsonl"
    deadline_s = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 10):
        assert time.monotonic() < deadline_s and process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with journal.open("ab") as file:
        file.write(b'{"key": "dev-0000')  # a line that the kill cut off
    assert not (tmp_path / "out" / "judgments").exists()
    _main(command)
    asked_twice = sum(count - 1 for count in server.asked.values())
    assert asked_twice <= 4  # the requests under way at the kill
    _main(_command(tmp_path, server, "--concurrency", "16", metarm=f"endpoint:{server.url}#metarm", out="b"))
    assert _judged(tmp_path) == _judged(tmp_path, "b")


def test_calls_that_fail_for_good_are_counted_and_repeated_by_the_next_run(
    tmp_path, answers, pairs, serve, capsys
):
    broken = True

    def answer(model, prompt):
        failing = broken and list(answers).index((model, prompt)) % 7 == 0
        return 500 if failing else answers[model, prompt]

    server = serve(answer)
    _main(_command(tmp_path, server, metarm=f"endpoint:{server.url}#metarm"))
    result, said = _result(tmp_path), capsys.readouterr().err
    rows = [json.loads(line) for line in _judged(tmp_path).splitlines()]
    failed = [row for row in rows if "model_error" in row["meta"]]
    assert failed and all(row["model_pred"] is None and "500" in row["meta"]["model_error"] for row in failed)
    unreviewed = [row for row in rows if row["metarm_verdict"] == "CallFail"]
    assert all(row["model_judgment"] is None for row in failed)  # as the released evaluator writes it
    assert len(failed) == result["num_call_fail"] > 0 and "num_swapped_call_fail" not in result
    assert len(unreviewed) == result["num_metarm_call_fail"] == result["num_judge_fail"] > 0
    assert all("500" in row["meta"]["metarm_error"] and row["metarm_score"] is None for row in unreviewed)
    assert f"{len(failed) + len(unreviewed)} calls failed for good" in said
    broken = False
    _main(_command(tmp_path, server, metarm=f"endpoint:{server.url}#metarm"))
    result = _result(tmp_path)
    assert result["num_call_fail"] == result["num_metarm_call_fail"] == 0
    assert not any("model_error" in json.loads(line)["meta"] for line in _judged(tmp_path).splitlines())


def test_a_refused_key_ends_the_run_in_one_line_and_keeps_the_results(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: 401)
    with pytest.raises(UserError, match="stopped: .* 401.*the same command continues"):
        _main(_command(tmp_path, server))


def test_results_of_other_settings_are_refused(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server))
    with pytest.raises(UserError, match=r"dev.answers.jsonl was made with temperature=0.4, not 0.9"):
        _main(_command(tmp_path, server, "--temperature", "0.9"))
    with pytest.raises(UserError, match=r"dev.reviews.jsonl was made with metarm='rule', not 'keywords'"):
        _main(_command(tmp_path, server, metarm="keywords"))
    write_pairs(tmp_path / "dev.jsonl", pairs[:5])
    with pytest.raises(UserError, match="made with pairs="):
        _main(_command(tmp_path, server))


def test_answers_of_another_program_are_reviewed_and_scored(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server, "--both-orders"))
    released = ("id", "gt_label", "model_judgment", "model_pred", "model_judgment_swapped")
    rows = [json.loads(line) for line in _judged(tmp_path).splitlines()]
    path = tmp_path / "theirs.jsonl"
    path.write_text("".join(json.dumps({n: row[n] for n in released}) + "\n" for row in rows))
    command = _command(tmp_path, server, "--both-orders", out="again")
    command[command.index("--model") + 1] = f"judge=judged:{path}"
    _main(command)
    assert _judged(tmp_path, "again") == _judged(tmp_path) and server.asked.total() == 2 * NUM_PAIRS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    command[command.index("--out") + 1] = f"{tmp_path}/third"
    with pytest.raises(UserError, match="theirs.jsonl: the file does not have every pair"):
        _main(command)
    path.write_text('{"id": "x"}\n')
    with pytest.raises(UserError, match="theirs.jsonl:1: no id, or no model_judgment"):
        _main(command)


def test_a_failed_call_of_the_released_evaluator_is_counted_and_not_repeated(
    tmp_path, answers, pairs, serve, capsys
):
    server = serve(lambda model, prompt: answers[model, prompt])
    path = tmp_path / "result" / "dev__judge.jsonl"
    path.parent.mkdir()
    texts = [None if n in (0, 5) else _judgment(p, n) for n, p in enumerate(pairs)]
    rows = [
        {"id": p.id, "model_judgment": text, "meta": {"model_name": "Org/Judge 1"}}
        for p, text in zip(pairs, texts, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = _command(tmp_path, server)
    command[command.index("--model") + 1] = f"judged:{path}"
    _main(command)
    (name,) = (folder.name for folder in (tmp_path / "out" / "judgments").iterdir())
    assert name == "Org_Judge%201"  # from the file, not the name of its folder
    result = json.loads((tmp_path / "out" / "report" / "summary.json").read_text())["models"]["Org_Judge 1"][
        "dev"
    ]
    unread = sum(text is None or "boxed" not in text for text in texts)
    assert (result["num_call_fail"], result["num_parse_fail"]) == (2, unread) and not server.asked
    assert "2 calls had failed when the answers were made" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out/judgments" / name / "dev.jsonl").open()]
    assert [row["id"] for row in rows if row["model_judgment"] is None] == [pairs[0].id, pairs[5].id]
    assert rows[0]["meta"]["model_error"] == "no answer in the file" and rows[0]["model_pred"] is None


def test_reviews_show_as_progress_when_no_answer_is_missing(tmp_path, answers, pairs, serve, capsys):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server))
    num_right = sum(
        row["metarm_verdict"] != "SkippedLabelMismatch" for row in map(json.loads, _rows(tmp_path))
    )
    said = capsys.readouterr().err
    assert f"step {NUM_PAIRS}/{NUM_PAIRS}: " in said and "s_corr 0." in said
    (tmp_path / "out" / "work" / "judge" / "dev.reviews.jsonl").unlink()
    _main(_command(tmp_path, server, metarm=f"endpoint:{server.url}#metarm"))
    assert f"step {num_right}/{num_right}: " in capsys.readouterr().err
    _main(_command(tmp_path, server, metarm=f"endpoint:{server.url}#metarm"))
    assert "step" not in capsys.readouterr().err


def test_a_server_that_moved_is_the_same_model(tmp_path, answers, pairs, serve):
    before, after = (serve(lambda model, prompt: answers[model, prompt]) for _ in range(2))
    _main(_command(tmp_path, before, metarm=f"endpoint:{before.url}#metarm"))
    _main(_command(tmp_path, after, metarm=f"endpoint:{after.url}#metarm"))
    assert before.asked and not after.asked
    with pytest.raises(UserError, match="made with metarm='endpoint:metarm', not 'endpoint:other'"):
        _main(_command(tmp_path, after, metarm=f"endpoint:{after.url}#other"))


def test_two_processes_do_not_share_a_folder(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server))
    with (tmp_path / "out" / "work" / "judge" / "dev.reviews.jsonl").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="dev.reviews.jsonl is in use by another process"):
            _main(_command(tmp_path, server))
    _main(_command(tmp_path, server))


@pytest.mark.parametrize("kind", ["tokens", "cost"])
@pytest.mark.parametrize("who", ["judge", "metarm"])
def test_a_budget_counts_the_tokens_of_earlier_runs(tmp_path, answers, pairs, serve, who, kind):
    """A call costs 10 + 5 tokens; with its own prompt, which is counted before it is sent, 10 of them fit."""
    server = serve(lambda model, prompt: answers[model, prompt])
    longest = max(len(prompt) for model, prompt in answers if model == who)
    price = "--price" if who == "judge" else "--metarm-price"  # one unit a call, for its answer
    budget = {
        "tokens": ["--budget-tokens", str(longest // 4 + 150)],
        "cost": ["--budget-cost", "10", price, "0", "2e5"],
    }
    metarm = "rule" if who == "judge" else f"endpoint:{server.url}#metarm"
    asked = []
    for _ in range(2):
        with pytest.raises(UserError, match="stopped: the budget of .* is spent"):
            _main(_command(tmp_path, server, "--concurrency", "1", *budget[kind], metarm=metarm))
        asked.append(sum(count for (model, _), count in server.asked.items() if model == who))
    assert 8 < asked[0] < 15 and asked[1] - asked[0] <= (kind == "tokens")


def test_new_golden_judgments_need_new_reviews_but_no_new_answers(tmp_path, answers, pairs, serve):
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server))
    write_pairs(tmp_path / "dev.jsonl", [replace(p, gt_judgment=f"Surely: {p.gt_judgment}") for p in pairs])
    with pytest.raises(UserError, match="dev.reviews.jsonl was made with goldens="):
        _main(_command(tmp_path, server))
    (tmp_path / "out" / "work" / "judge" / "dev.reviews.jsonl").unlink()
    _main(_command(tmp_path, server))
    assert server.asked.total() == NUM_PAIRS and '"Surely: ' in _judged(tmp_path)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--metarm", "oracle"],
            "--metarm oracle: expected rule, keywords, endpoint:URL#MODEL, managed:FOLDER or FILE.py:NAME",
        ),
        (["--metarm", "none"], "--metarm none: expected rule"),
        (["--metarm", "nowhere.py:MINE"], "metarm.kind=nowhere.py:MINE: no module nowhere.py"),
        (["--metarm", "endpoint:http://x/v1"], "expected endpoint:URL#MODEL"),
        (["--metarm", "endpoint:x#m"], "base_url must be an address"),
        (["--metarm", "managed:nowhere"], "metarm.model=nowhere: no Hugging Face folder"),
        (["--model", "nowhere"], "--model nowhere: expected a Hugging Face folder"),
        (["--model", "endpoint:http://a/v1#m", "endpoint:http://b/v1#m"], "another model is named m too"),
        (
            ["--model", "endpoint:http://a/v1#m", "--timeout-s", "0"],
            "argument --timeout-s: '0' is not a finite number above 0",
        ),
        (["--template", "nope"], "'nope' is neither compact, full nor a readable"),
        (["--budget-cost", "3"], "--budget-cost 3 needs a price: --metarm-price, or --price of models"),
    ],
)
def test_mistakes_are_found_before_any_request(tmp_path, pairs, serve, more, message, answers):
    server = serve(lambda model, prompt: answers[model, prompt])
    with pytest.raises(UserError, match=message):
        _main([*_command(tmp_path, server), *more])
    assert not server.asked


def test_a_managed_metarm_is_started_used_and_closed(tmp_path, answers, pairs, serve, monkeypatch):
    server = serve(lambda model, prompt: answers["metarm" if model.endswith("folder") else model, prompt])
    calls = []

    class FakeServer:
        api_key, failure = "key", None

        def __init__(self, config, log, host):
            assert host == "127.0.0.1"
            calls.append((config.model, config.server.devices, log.name))

        def start(self):
            calls.append("start")
            return server.url

        def close(self):
            calls.append("close")

    monkeypatch.setattr(managed, "Server", FakeServer)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    _main(_command(tmp_path, server, "--metarm-devices", "6,7", metarm=f"managed:{folder}"))
    assert calls == [(str(folder), "6,7", "metarm_server.log"), "start", "close"]
    _main(_command(tmp_path, server, "--metarm-devices", "6,7", metarm=f"managed:{folder}"))
    assert len(calls) == 3  # no review is missing, so no server is started
    assert _result(tmp_path)["s_corr"]["value"] > 0 and _result(tmp_path)["num_judge_fail"] == 0


_MINE = r"""
from ralign.engine.judging.metarm import Outcome, RuleBased
from ralign.engine.judging.metarms import MetaRMKind

class Short(RuleBased):
    def outcome(self, golden, judgment):
        return Outcome.CORRECT if len(judgment) <= len(golden) else Outcome.INCORRECT

SHORT = MetaRMKind(open=lambda config, context: Short())
"""


def test_a_metarm_of_the_user_s_own_reviews_the_answers(tmp_path, answers, pairs, serve):
    (tmp_path / "short.py").write_text(_MINE)
    spec = f"{tmp_path}/short.py:SHORT"
    server = serve(lambda model, prompt: answers[model, prompt])
    _main(_command(tmp_path, server, metarm=spec))
    rows = [json.loads(line) for line in _rows(tmp_path)]
    assert {row["meta"]["metarm_model_name"] for row in rows} == {spec}
    reviewed = [row for row in rows if row["metarm_verdict"] != "SkippedLabelMismatch"]
    for row in reviewed:
        short = len(row["model_judgment"]) <= len(row["gt_judgment"])
        assert row["metarm_verdict"] == ("Correct" if short else "Incorrect")
    assert reviewed and _result(tmp_path)["num_judge_fail"] == 0
    with pytest.raises(UserError, match=r"dev.reviews.jsonl was made with metarm='.*:SHORT', not 'rule'"):
        _main(_command(tmp_path, server))


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """A folder with a two-layer Qwen3 of random weights and a tokenizer of JudgeWorld's words."""
    from ralign.engine.config.run import ModelConfig
    from ralign.engine.data.tokenizer import build_tokenizer
    from ralign.engine.policy.fresh import create_model_folder

    world = build_judgeworld(JudgeWorldConfig(num_train=200, num_warm_start=1, num_dev=1, num_test=1))
    texts = [text for p in world["train"] for text in (render(_COMPACT, p), p.gt_judgment)]
    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = build_tokenizer(texts, folder, 512)
    create_model_folder(folder, ModelConfig(), tokenizer, 0)
    return folder


@pytest.mark.slow
def test_a_folder_is_judged_in_this_process(tmp_path, pairs, tiny_model):
    command = ["run", "--pairs", f"{tmp_path}/dev.jsonl", "--model", f"tiny={tiny_model}", "--metarm", "rule"]
    command += ["--out", f"{tmp_path}/out", "--template", "compact", "--max-new-tokens", "24"]
    command += ["--kv-cache-gib", "0.1", "--max-num-seqs", "128", "--draws", "50", "--both-orders"]
    program = [sys.executable, "-m", "ralign.engine.evaluation.cli", *command]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (judged,) = read_files([f"tiny={tmp_path}/out/judgments/tiny/dev.jsonl"])["tiny"].values()
    assert len(judged) == NUM_PAIRS and all(pair.in_both_orders for pair in judged)
    assert len({pair.record["model_judgment"] for pair in judged}) > NUM_PAIRS // 2  # answers differ
    assert "tiny on dev" in done.stderr and "s/step" in done.stderr
