"""ralign-check as a command: lines and JSON, exit status, mistakes in one line, help at once, torch missing."""

import json
import os
import subprocess
import sys

import pytest
from ralign.engine.check import cli, machine
from ralign.engine.planner.cli import recipe_run
from ralign.engine.planner.hardware import CHIPS

OF_MACHINE = [
    "torch", "driver", "gpus", "processes", "nccl", "/dev/shm", "nvlink", "packages", "extension", "slurm", "disk",
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """No models/ and no runs/ of this repository; and this process has no rank."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def check(monkeypatch, capsys, machine_with):
    """Runs the command on a stubbed machine: (status, what it printed, what it complained)."""

    def run(*words: str, **changes):
        monkeypatch.setattr(machine, "read_machine", lambda: machine_with(**changes))
        monkeypatch.setattr(sys, "argv", ["ralign-check", *words])
        status = 0
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.fixture
def ready(tmp_path, qwen3_folder, pairs_file, judge_server):
    """What a run of r_align_8b needs, and the words that name it."""
    qwen3_folder(tmp_path)
    pairs_file(tmp_path / "pairs.jsonl")
    judge = judge_server()
    return ["r_align_8b", "data.train=pairs.jsonl", f"metarm.base_url={judge.url}"], judge.key


def levels(out: str) -> dict[str, str]:
    return {line.split()[1]: line.split()[0] for line in out.splitlines()[:-1]}


def test_a_run_that_is_ready_is_ok_in_every_line(check, ready):
    words, key = ready
    status, out, err = check(*words, env={"OPENAI_API_KEY": key})
    assert status == 0 and err == ""
    assert levels(out) == dict.fromkeys([*OF_MACHINE, "model", "data", "judge", "plan"], "OK")
    assert out.endswith("0 FAIL, 0 WARN, 15 OK\n")


def test_an_old_driver_no_shared_memory_and_a_wrong_key_each_fail_alone(check, ready, old_driver):
    words, key = ready
    for changes, failed in (
        (old_driver | {"env": {"OPENAI_API_KEY": key}}, "driver"),
        ({"shared_memory": None, "env": {"OPENAI_API_KEY": key}}, "/dev/shm"),
        ({"env": {"OPENAI_API_KEY": "sk-wrong-9876543210"}}, "judge"),
    ):
        status, out, err = check(*words, **changes)
        assert status == 1 and [name for name, level in levels(out).items() if level == "FAIL"] == [failed]
        assert "sk-wrong" not in out + err


def test_json_holds_the_same_findings(check, ready):
    words, key = ready
    status, out, _ = check(*words, "--json", shared_memory=None, env={"OPENAI_API_KEY": key})
    report = json.loads(out)
    assert status == 1 and (report["recipe"], report["level"]) == ("r_align_8b", "FAIL")
    [failed] = [finding for finding in report["findings"] if finding["level"] == "FAIL"]
    assert failed["check"] == "/dev/shm" and "--shm-size" in failed["next_step"]


def test_without_a_recipe_the_machine_alone_is_checked(check, no_gpus):
    status, out, _ = check()
    assert status == 0 and list(levels(out)) == OF_MACHINE
    status, out, _ = check(**no_gpus)
    found = levels(out)
    assert status == 0 and (found["driver"], found["gpus"]) == ("WARN", "WARN")


def test_without_gpus_a_miniature_passes_a_gpu_recipe_fails_and_one_for_elsewhere_is_planned(check, no_gpus):
    status, out, _ = check("r_align_mini", **no_gpus)
    assert status == 0 and levels(out)["plan"] == "OK"
    _, out, _ = check("r_align_8b", **no_gpus)
    assert (levels(out)["gpus"], levels(out)["plan"]) == ("FAIL", "WARN")
    _, out, _ = check("r_align_8b", "--gpus", "16", "--gpu", "h200", **no_gpus)
    found = levels(out)
    assert (found["driver"], found["gpus"], found["plan"]) == ("WARN", "WARN", "OK")
    assert "fits 16 x h200" in out


def test_a_miniature_with_cuda_builds_and_no_gpu_fails(check, no_gpus, old_driver):
    _, out, _ = check("r_align_mini", **no_gpus | {"torch": old_driver["torch"]})
    assert levels(out)["gpus"] == "FAIL" and "no engine for a CPU" in out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing"], "recipe nothing: no such file and no recipe of that name"),
        (["r_align_8b", "optim.lrr=1"], "unknown setting optim.lrr=1: did you mean optim.lr"),
        (["r_align_8b", "num_steps=many"], "num_steps=many: expected a whole number"),
        (["num_steps=5"], "a recipe comes first"),
        (["r_align_8b", "--gpus", "0"], "'0' is not a whole number of at least 1"),
        (["r_align_8b", "--gpu", "v100"], "--gpu must be one of a100,"),
        (["r_align_8b", "--smoke"], "--smoke makes its own model, data and judge"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(check, words, text):
    status, out, err = check(*words)
    assert status == 2 and out == "" and err.count("\n") == 1 and text in err


def test_options_may_stand_before_the_recipe_and_among_its_settings(check, ready):
    words, key = ready
    for line in (["--json", "--gpus", "8", *words], [words[0], "--gpus", "8", *words[1:], "--json"]):
        status, out, _ = check(*line, env={"OPENAI_API_KEY": key})
        assert status == 0 and json.loads(out)["level"] == "OK"


def run_python(code: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


def test_help_comes_without_torch():
    done = run_python(
        "import sys; sys.argv = ['ralign-check', '--help']\n"
        "from ralign.engine.check.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'transformers', 'openai', 'httpx', 'psutil'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout and "Exit" in done.stdout


def test_with_torch_missing_that_is_one_line_and_the_others_are_still_there(tmp_path, qwen3_folder):
    qwen3_folder(tmp_path)
    done = run_python(
        "import sys; sys.modules['torch'] = None; sys.argv = ['ralign-check', 'r_align_8b']\n"
        "from ralign.engine.check.cli import main; main()",
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    found = levels(done.stdout)
    assert found["torch"] == "FAIL" and list(found) == [*OF_MACHINE, "model", "data", "judge", "plan"]


def test_findings_are_also_to_be_had_without_the_command(machine_with):
    found = cli.findings(
        recipe_run("r_align_32b"), "r_align_32b", machine_with(), num_gpus=16, chip=CHIPS["h200"]
    )
    assert {finding.check: finding.level for finding in found}["plan"] == "OK"
