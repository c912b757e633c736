"""Who is resident when: every byte of the ledger in one row, and the GenRM where it takes memory of the device."""

from dataclasses import replace

import pytest
from ralign.engine.actors.memory_table import memory_rows
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import GenRMConfig, MetaRMConfig, ServerConfig
from ralign.engine.config.run import GenRMRun, ModelConfig
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.memory import ledger
from ralign.engine.planner.shapes import shape_of
from ralign.engine.planner.start import check_memory
from ralign.engine.runtime.errors import UserError


def _rows(run, *, on_gpu=True):
    plan = ledger(Job.of(run, 2, shape_of(run.model)), 80 * GIB, on_gpu=on_gpu)
    heading, *rows = memory_rows(run, plan)
    return plan, heading, {row[0]: row[1:] for row in rows}


def _run(**genrm):
    model = ModelConfig(num_layers=8, hidden_size=4096, ffn_hidden_size=16384, num_attention_heads=32)
    algo = AlgoConfig(advantages="gae", kl_coef=0.1)
    return ActorRun(model=model, algo=algo, genrm=GenRMConfig(**genrm))


def test_every_byte_is_in_one_row():
    plan, heading, rows = _rows(_run())
    assert heading[1:] == [*plan.phases, "host"] and not any(name.startswith("GenRM") for name in rows)
    for column, phase in enumerate(plan.phases):
        shown = sum(float(cells[column]) for cells in rows.values() if cells[column] != "-")
        assert shown == pytest.approx(plan.total_bytes(phase) / GIB, abs=0.05)
    assert float(rows["critic"][0]) > 0 and float(rows["reference"][-1]) > 0


def test_a_genrm_takes_its_share_unless_it_is_elsewhere():
    run = _run(model="org/name", kind="managed")
    run.genrm.server = ServerConfig(gpu_memory_utilization=0.35)
    assert set(_rows(run)[2]["GenRM (managed)"][:-1]) == {"28.00"}
    run.genrm.server = ServerConfig(devices="8,9")
    assert set(_rows(run)[2]["GenRM (managed)"]) == {"-"}
    assert set(_rows(_run(model="name", kind="endpoint"))[2]["GenRM (endpoint)"]) == {"-"}
    assert set(_rows(_run(model="folder"))[2]["GenRM (process)"][:-1]) == {"24.00"}  # 0.3 of 80


def test_a_server_that_sleeps_takes_its_share_while_generating_alone(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(6 * GIB)  # takes no disk
    run = _run(model=str(tmp_path), kind="managed")
    run.genrm.server = ServerConfig(gpu_memory_utilization=0.25, tensor=2, sleep_level=1)
    plan, heading, rows = _rows(run)
    assert plan.phases["generate"]["judge_weights"] == 3 * GIB
    sizes = dict(zip(heading[1:], rows["GenRM (managed)"], strict=True))
    awake = {"start": "20.00", "generate": "20.00"}
    assert sizes == dict.fromkeys(plan.phases, "-") | awake | {"host": "3.00"}
    run.genrm.server.sleep_level = 2
    assert "judge" not in _rows(run)[0].host
    # Without a GPU nothing sleeps.
    on_cpu = _rows(run, on_gpu=False)[0]
    assert all(parts["judge_kv_cache"] == GIB for parts in on_cpu.phases.values())


def test_a_metarm_of_the_job_is_in_the_ledger_too():
    run = GenRMRun(model=ModelConfig(num_layers=2), metarm=MetaRMConfig(kind="managed", model="org/name"))
    job = Job.of(run, 2, shape_of(run.model))
    plan = ledger(job, 80 * GIB, on_gpu=True)
    assert {parts["judge_kv_cache"] for parts in plan.phases.values()} == {28 * GIB}  # 0.35 of 80
    for elsewhere in (MetaRMConfig(kind="endpoint", model="m"), MetaRMConfig(kind="rule")):
        assert Job.of(replace(run, metarm=elsewhere), 2, job.shape).judge is None


def test_a_genrm_in_the_processes_is_held_in_every_phase_and_leaves_the_kv_cache_less(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"0" * 3 * 2**20)
    run, alone = _run(model=str(tmp_path), gpu_memory_utilization=0.25), _run()
    for each in (run, alone):
        each.generator.kv_cache_gib = 0.0
    plan, heading, rows = _rows(run)
    for parts in plan.phases.values():
        assert parts["judge_weights"] == 3 * 2**20
        assert parts["judge_weights"] + parts["judge_kv_cache"] == 20 * GIB
    for column, phase in enumerate(plan.phases):
        shown = sum(float(cells[column]) for cells in rows.values() if cells[column] != "-")
        assert shown == pytest.approx(plan.total_bytes(phase) / GIB, abs=0.05)
    assert plan.total_bytes("generate") <= int(0.9 * 80 * GIB) and plan.kv_bytes <= _rows(alone)[0].kv_bytes
    on_cpu, _, _ = _rows(run, on_gpu=False)
    assert on_cpu.phases["learn"]["judge_kv_cache"] == GIB // 4


def test_a_genrm_that_cannot_fit_is_refused_at_the_start(tmp_path):
    run = _run(model=str(tmp_path))
    run.model = ModelConfig(num_layers=2)
    shape = shape_of(run.model)
    check_memory(run, 2, shape, capacity_bytes=12 * GIB, on_gpu=True)
    run.genrm.gpu_memory_utilization = 0.9  # of 12 GiB; 4 are in reserve
    with pytest.raises(UserError, match=r"generate needs .* GiB of 12\.0 GiB"):
        check_memory(run, 2, shape, capacity_bytes=12 * GIB, on_gpu=True)
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(2 * GIB)  # takes no disk
    run.genrm.gpu_memory_utilization = 0.1
    with pytest.raises(
        UserError, match=r"judge has 1\.20 GiB \(genrm\.gpu_memory_utilization=0\.1\), .* 2\.00 GiB"
    ):
        check_memory(run, 2, shape, capacity_bytes=12 * GIB, on_gpu=True)
