"""First contact without a GPU: the command line, what each stage starts, and what its result is read as."""

import json
import subprocess
import sys

import contact_stages
import first_contact
import pytest
from contact_stages import STAGES
from source_tree import ROOT
from stage_runner import Outcome, Row, run_stage

MACHINE = {"device": "NVIDIA H200", "torch": "2.13.0"}
BY_NAME = {stage.name: stage for stage in STAGES}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """`main` on a machine with a GPU, each stage's outcome given by name (default: done); notes what ran."""
    ran: list[str] = []

    def call(*argv, outcomes=None, problem=""):
        def run_all(stages, record, folder, *, minutes):
            for stage in stages:
                if not record.is_done(stage.name):
                    ran.append(stage.name)
                    row = Row(name="x", value=minutes, at_most=10)
                    record.add(
                        stage.name, (outcomes or {}).get(stage.name, Outcome(status="done", rows=[row]))
                    )

        monkeypatch.setattr(first_contact, "this_machine", lambda: (MACHINE, problem))
        monkeypatch.setattr(first_contact, "run_all", run_all)
        return first_contact.main(["--out", str(tmp_path), *argv])

    call.ran = ran
    return call


def test_without_a_gpu_it_ends_with_one_line_and_status_2(capsys, start):
    assert start(problem="none found") == 2 and start.ran == []
    assert capsys.readouterr().err == "first_contact.py needs a CUDA device: none found\n"


def test_so_does_the_program_itself():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, str(ROOT / "benchmarks" / "first_contact.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "first_contact.py needs a CUDA device: none found\n"


@pytest.mark.parametrize(
    ("printed", "status", "problem"),
    [
        ('[{"device": "NVIDIA H200", "torch": "2.13.0", "cuda": "13.0"}, 1]', 0, ""),
        ('[{"device": "", "torch": "2.13.0", "cuda": "13.0"}, 0]', 0, "none found"),
        (
            '[{"device": "", "torch": "2.13.0", "cuda": "13.0"}, 8]',
            0,
            "8 GPU(s) that torch 2.13.0 for CUDA 13.0 cannot use: CUDA 13 wants driver 580 or newer",
        ),
        ("", 1, "torch does not import (above)"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told_from_none(monkeypatch, printed, status, problem):
    code = f"print({printed!r}); raise SystemExit({status})"
    monkeypatch.setattr(first_contact, "PROBE", code)
    assert first_contact.this_machine()[1] == problem


def test_the_probe_asks_torch_and_this_process_does_not():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'benchmarks')!r})\n"
    code += "import first_contact\nprint(first_contact.this_machine())\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    machine, loaded = done.stdout.splitlines()
    assert "'torch': '" in machine and loaded == "False"


def test_stages_are_chosen_and_listed(start, capsys):
    assert start("--list") == 0 and start.ran == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(BY_NAME)
    assert start("--stages", "mini,kernels") == 0
    assert start.ran == ["kernels", "mini"]
    with pytest.raises(SystemExit) as exit_:
        start("--stages", "mini,speed")
    assert (
        exit_.value.code == 2 and "--stages speed: stages are gpu_check, kernels" in capsys.readouterr().err
    )


def test_it_goes_on_where_it_stopped_unless_told_otherwise(start):
    assert start(outcomes={"mini": Outcome(status="failed", reason="no")}) == 1
    del start.ran[:]
    assert start() == 0 and start.ran == ["mini"]
    del start.ran[:]
    assert start("--again", "--stages", "roofline") == 0 and start.ran == ["roofline"]


def test_the_status_and_the_table_say_what_is_missed(start, capsys, tmp_path):
    assert start("--minutes", "11") == 1  # a figure over its limit
    out = capsys.readouterr().out
    assert "MISSED" in out and "device NVIDIA H200, torch 2.13.0" in out
    assert (
        json.loads((tmp_path / "first_contact.json").read_text())["stages"]["mini"]["rows"][0]["verdict"]
        == "MISSED"
    )


def test_what_needs_no_installation_comes_first_and_asks_for_none():
    assert list(BY_NAME) == ["gpu_check", "kernels", "roofline", "shared_weights", "mini", "one_step"]
    for name in ("gpu_check", "kernels", "roofline"):
        assert set(BY_NAME[name].needs) <= {"torch", "triton", "pytest", "hypothesis"}
    for name in ("shared_weights", "mini", "one_step"):
        assert {"megatron.core", "vllm", "ralign.kernels._packing"} <= set(BY_NAME[name].needs)


def test_every_program_is_there(tmp_path):
    for stage in STAGES:
        command = stage.command(tmp_path)
        programs = [word for word in command if word.endswith(".py") and not word.startswith("-")]
        assert command[0] == sys.executable and all((ROOT / program).exists() for program in programs)
        assert programs or "pytest" in command


def figures(name: str, folder) -> dict[str, Row]:
    return {row.name: row for row in BY_NAME[name].read(folder)}


def test_a_wrong_result_is_named(tmp_path):
    checks = [
        {"name": "logprob V=7 float32", "right": True},
        {"name": "rms_norm H=5 bfloat16", "right": False},
    ]
    (tmp_path / "result.json").write_text(json.dumps({"checks": checks}))
    wrong = figures("gpu_check", tmp_path)["wrong results"]
    assert (wrong.value, wrong.verdict, wrong.note) == (1, "MISSED", "rms_norm H=5 bfloat16")


@pytest.mark.parametrize(
    ("tests", "failures", "errors", "skipped", "verdicts"),
    [
        (320, 0, 0, 4, ["met", "met", ""]),
        (320, 2, 1, 4, ["met", "MISSED", ""]),
        (320, 0, 0, 320, ["MISSED", "met", ""]),  # no test ran: nothing has passed
    ],
)
def test_tests_that_did_not_run_have_not_passed(tmp_path, tests, failures, errors, skipped, verdicts):
    suite = f'<testsuite tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}"/>'
    (tmp_path / "tests.xml").write_text(f"<testsuites>{suite}</testsuites>")
    rows = BY_NAME["kernels"].read(tmp_path)
    assert [row.verdict for row in rows] == verdicts
    assert rows[0].value == tests - failures - errors - skipped


def test_pytest_runs_what_the_machine_can_import(monkeypatch, tmp_path):
    monkeypatch.setattr(contact_stages, "missing", lambda needs: ["vllm"])
    monkeypatch.setattr(contact_stages.importlib.util, "find_spec", lambda name: None)
    alone = BY_NAME["kernels"].command(tmp_path)
    assert alone[-2:] == [str(ROOT / "tests/kernels"), f"--ignore={ROOT / 'tests/kernels/test_rms_norm.py'}"]
    monkeypatch.setattr(contact_stages, "missing", lambda needs: [])
    monkeypatch.setattr(contact_stages.importlib.util, "find_spec", lambda name: object())
    everything = BY_NAME["kernels"].command(tmp_path)
    assert everything[-2:] == [str(ROOT / "tests/kernels"), str(ROOT / "tests/engine/policy")]
    assert everything[everything.index("-m", 3) + 1] == "gpu"


def test_a_kernel_is_shown_beside_the_roofs(tmp_path):
    row = {
        "case": "logprob, forward", "shape": "N=8192", "implementation": "ralign", "ms": 0.7, "target_ms": 0.64,
        "bytes_per_s": 3.5e12, "flops_per_s": 0.0, "share_of_ceiling": 0.8, "target_share": None,
    }  # fmt: skip
    norm = row | {
        "case": "rms_norm",
        "ms": 1.0,
        "target_ms": None,
        "share_of_ceiling": 0.9,
        "target_share": 0.85,
    }
    head = row | {"case": "head", "target_ms": None, "bytes_per_s": 0.0, "flops_per_s": 6e14}
    report = {
        "copy_bytes_per_s": 4.3e12, "matmul_flops_per_s": 7.9e14, "times": [row, norm, head],
        "linear_policy_loss_extra_memory_gb": 0.61,
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(report))
    found = figures("roofline", tmp_path)
    assert found["copy, read and written"].value == 4.3
    assert found["logprob, forward, N=8192"].verdict == "MISSED"
    assert found["logprob, forward, N=8192"].note == "3.50 TB/s, 80% of roof"
    assert (
        found["rms_norm, N=8192"].verdict == "" and found["rms_norm, N=8192: share of roof"].verdict == "met"
    )
    assert found["head, N=8192"].note == "600 TFLOP/s, 80% of roof"
    assert found["linear_policy_loss, extra memory"].verdict == "MISSED"


def test_the_ledger_is_held_against_the_driver(tmp_path):
    metrics = {
        "memory/host_pinned_predicted_gib": 50.0, "policy/rollout_kl": 1e-3, "time_s/total": 7.0,
        "memory/learn_predicted_gib": 50.0, "memory/learn_used_gib": 56.0,
        "memory/learn_held_predicted_gib": 36.0, "memory/learn_held_gib": 36.1,
        "memory/start_predicted_gib": 20.0, "memory/start_used_gib": 19.0,
        "memory/start_held_predicted_gib": 16.0, "memory/start_held_gib": 14.0,
    }  # fmt: skip
    result = {"metrics": metrics, "run": {"memory": {"reserve_gib": 6.0}}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    found = figures("one_step", tmp_path)
    assert {name: row.verdict for name, row in found.items() if name.startswith("memory")} == {
        "memory, learn: used over predicted": "MISSED",
        "memory, learn: taken of the reserve": "MISSED",
        "memory, learn: held over predicted": "met",
        "memory, start: used over predicted": "met",
        "memory, start: taken of the reserve": "met",
        "memory, start: held over predicted": "MISSED",
    }
    assert found["memory, start: taken of the reserve"].value == 5.0  # 14 GiB are others'
    assert found["memory, learn: used over predicted"].note == "56.0 of 50.0 GiB"
    assert found["second step, total"].value == 7.0


@pytest.mark.jobs
@pytest.mark.parametrize("name", ["shared_weights", pytest.param("mini", marks=pytest.mark.slow)])
def test_what_an_engine_leaves_is_read(name, tmp_path):
    """The real programs, on this machine's device."""
    outcome = run_stage(BY_NAME[name], tmp_path / name)
    assert outcome.status == "done", outcome.reason
    assert outcome.is_good, [row for row in outcome.rows if row.verdict == "MISSED"]
    assert len(outcome.rows) >= 5


@pytest.mark.jobs
def test_a_step_with_everything_moving_is_read(tmp_path):
    """benchmarks/one_step.py with a model for a CPU, whose kernel counts more than the ledger does: held alone."""
    sizes = [
        "model.num_layers=2", "model.hidden_size=128", "model.ffn_hidden_size=256", "model.num_attention_heads=4",
        "model.num_query_groups=2", "model.head_dim=32", "parallel.dtype=fp32", "generator.max_new_tokens=16",
        "generator.kv_cache_gib=0.1", "generator.max_num_seqs=16", "algo.num_prompts=4", "algo.num_samples=2",
        "token_budget=2048", "--vocab-size=2000",
    ]  # fmt: skip
    command = [*BY_NAME["one_step"].command(tmp_path), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = figures("one_step", tmp_path)
    for phase in ("start", "generate", "learn", "update"):
        assert found[f"memory, {phase}: held over predicted"].verdict == "met", phase
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert metrics["policy/grad_norm"] > 0 and metrics["step"] == 2
    # While generating, only weights and KV cache are held: optimizer state and gradients have left, and come back.
    assert metrics["memory/generate_held_gib"] == pytest.approx(metrics["memory/start_held_gib"], rel=1e-3)
    assert not (tmp_path / "model").exists()
