"""The memory formulas: against what Megatron allocates for tiny models, and by hand for the 32B."""

from dataclasses import replace

import pytest
from ralign.engine.planner.cli import recipe_run
from ralign.engine.planner.formulas import num_held
from ralign.engine.planner.hardware import CHIPS, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.judges import GIB
from ralign.engine.planner.layouts import fitting
from ralign.engine.planner.memory import ledger, wanted_kv_bytes
from ralign.engine.planner.shapes import PUBLISHED, shape_of

H200 = int(150.7e9)
# The recipe's own layout, written out.
R_ALIGN_32B = Job(
    shape=PUBLISHED["Qwen3-32B"],
    world_size=8,
    tensor=8,
    pipeline=1,
    context=1,
    sequence=True,
    recompute=True,
    dtype="bf16",
    generate_tensor=8,
    token_budget=16384,
    max_prompt_tokens=6144,
    max_new_tokens=8192,
    num_prompts=256,
    num_samples=8,
    num_updates=1,
    has_reference=True,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    bucket_bytes=256 << 20,
    reserve_bytes=6 * GIB,
    utilization=0.9,
    kv_bytes=0,
    offload="auto",
    kv_sleep="auto",
)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_megatron_allocates_what_is_predicted(torchrun, num_processes):
    report = torchrun("planner_memory", num_processes)
    assert len(report) == (2 if num_processes == 1 else 10)
    for name, rows in report.items():
        for row in rows:
            measured, predicted = row["measured"], row["predicted"]
            for exact in ("held", "weights", "gradients"):
                assert measured[exact] == predicted[exact], (name, exact, row)
            assert measured["optimizer"] == pytest.approx(predicted["optimizer"], rel=0.01), (name, row)
            # Ranks of one stage are alike; gloo frees what it sent sooner on one than on the other.
            alike = [other for other in rows if other["predicted"] == predicted]
            for phase in ("learn", "logprobs", "update"):
                total = min(other["resident"] + other["measured"][phase] for other in alike)
                assert row["resident"] + predicted[phase] == pytest.approx(total, rel=0.05), (
                    name,
                    phase,
                    row,
                )


def test_the_32b_has_its_published_size():
    hidden, ffn, heads, groups, width, vocab, layers = 5120, 25600, 64, 8, 128, 151936, 64
    layer = hidden * width * (heads + 2 * groups) + heads * width * hidden + 3 * hidden * ffn
    layer += 2 * hidden + 2 * width
    assert (
        PUBLISHED["Qwen3-32B"].num_parameters
        == layers * layer + 2 * vocab * hidden + hidden
        == 32_762_123_264
    )


@pytest.mark.parametrize("data", [1, 2, 8])
def test_the_32b_by_closed_formulas(data):
    """bf16 on 8 tensor-parallel ranks: 2 bytes of weights, 4 of gradients, 12 of optimizer state, by hand."""
    job = replace(R_ALIGN_32B, world_size=8 * data)
    sharded = (32_762_123_264 - 64 * (2 * 5120 + 2 * 128) - 5120) / 8  # all but the norms
    held = sharded + 64 * (2 * 5120 + 2 * 128) + 5120
    assert num_held(job, 0) == pytest.approx(held, rel=1e-5)
    plan = ledger(job, H200)
    learn = plan.phases["learn"]
    assert learn["weights"] == pytest.approx(2 * held, rel=1e-5)
    assert learn["gradients"] == pytest.approx(4 * held, rel=1e-5)
    assert learn["optimizer"] == pytest.approx(12 * held / data, rel=1e-5)
    # A layer's input for each of 64 layers and the final norm's two, split over the tensor ranks: bf16.
    assert learn["activations"] == (64 + 2) * 2 * 16384 // 8 * 5120
    # One key and one value head a rank: 2 · 64 layers · 128 · 2 bytes a token.
    assert job.kv_token_bytes == 32768 and job.sequence_bytes == 14336 * 32768
    assert plan.host.get("optimizer", 0) == (learn["optimizer"] if plan.offload else 0)
    assert plan.host["reference"] == learn["weights"]


def test_stages_hold_their_own_layers_and_the_fullest_is_shown():
    job = replace(R_ALIGN_32B, tensor=2, pipeline=4)
    held = [num_held(job, stage) for stage in range(4)]
    assert sum(held) == pytest.approx(32_762_123_264 / 2, rel=1e-3)
    assert held[1] == held[2] < held[0] and held[1] < held[3]
    totals = [max(ledger(job, H200).total_bytes(phase) for phase in ("learn", "update"))]
    assert ledger(job, H200).stage in (0, 3) and totals


def test_nothing_moves_that_need_not():
    roomy = ledger(replace(R_ALIGN_32B, kv_bytes=GIB), 1000 * GIB)
    assert not roomy.offload and not roomy.kv_sleep and "optimizer" not in roomy.host
    assert roomy.phases["generate"]["optimizer"] and roomy.phases["learn"]["kv_cache"] == GIB
    tight = ledger(R_ALIGN_32B, H200)
    assert tight.offload and tight.kv_sleep
    assert "optimizer" not in tight.phases["generate"] and "gradients" not in tight.phases["generate"]
    assert "kv_cache" not in tight.phases["learn"]
    assert tight.kv_bytes > ledger(replace(R_ALIGN_32B, offload="never"), H200).kv_bytes


def test_the_shared_path_has_no_second_copy_and_no_sync():
    shared, gathered = ledger(R_ALIGN_32B, H200), ledger(replace(R_ALIGN_32B, generate_tensor=4), H200)
    assert "engine_weights" not in shared.phases["generate"] and "sync" not in shared.phases
    assert gathered.phases["generate"]["engine_weights"] == pytest.approx(2 * 32_762_123_264 / 4, rel=1e-3)
    assert gathered.phases["sync"]["bucket"] == 256 << 20


def test_the_kv_cache_takes_what_is_left_and_no_more_than_is_of_use():
    plan = ledger(R_ALIGN_32B, H200)
    generate = plan.phases["generate"]
    assert plan.total_bytes("generate") <= 0.9 * H200
    assert generate["kv_cache"] == min(
        int(0.9 * H200) - (sum(generate.values()) - generate["kv_cache"]), 2 * wanted_kv_bytes(R_ALIGN_32B)
    )


def test_a_critic_is_held_beside_the_policy_in_every_phase_and_has_two_of_its_own():
    alone = ledger(R_ALIGN_32B, H200 * 2)
    job = replace(R_ALIGN_32B, critic=PUBLISHED["Qwen3-8B"].as_critic(), offload="always")
    plan = ledger(job, H200 * 2)
    # By hand: the 8B without its LM head, with a row of 4096 instead; over 8 ranks all but norms and that row.
    vocab, hidden, ffn, layers = 151936, 4096, 12288, 36
    layer = 2 * hidden * 128 * (32 + 8) + 3 * hidden * ffn
    held = (vocab * hidden + layers * layer) / 8 + layers * (2 * hidden + 2 * 128) + 2 * hidden
    for phase, parts in plan.phases.items():
        assert parts["critic_weights"] == pytest.approx(2 * held, rel=1e-4), phase
        assert (
            ("critic_optimizer" in parts)
            == ("critic_gradients" in parts)
            == (phase not in ("start", "generate"))
        )
    critic = plan.phases["critic"]
    assert critic["critic_gradients"] == pytest.approx(4 * held, rel=1e-4)
    assert critic["critic_optimizer"] == pytest.approx(12 * held, rel=1e-4)
    assert critic["optimizer_workspace"] == pytest.approx(4 * held, rel=1e-4)  # more than the pass before it
    assert plan.host["critic_optimizer"] == critic["critic_optimizer"]
    assert plan.phases.keys() - alone.phases.keys() == {"values", "critic"}
    assert not any("critic" in name for parts in alone.phases.values() for name in parts)


RECIPES = ("r_align_8b", "r_align_14b", "r_align_32b", "rlvr_14b", "actor_rlhf_8b")


@pytest.mark.parametrize("chip", ["h100", "h200"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_accepted_layout_fits_while_the_engine_is_built(recipe, chip):
    """Models come with gradients, the KV cache has what `generate` leaves: both at once would not fit."""
    run, capacity = recipe_run(recipe), CHIPS[chip].memory_bytes
    accepted = 0
    for num_gpus in (8, 16, 32, 64):
        job = Job.of(run, num_gpus, shape_of(run.model))
        for layout in fitting(job, CHIPS[chip], Constants(), 256e9):
            plan, start = layout.ledger, layout.ledger.phases["start"]
            kept = {"gradients", "critic_gradients"} & start.keys()
            assert bool(kept) == (not plan.offload), layout.settings()
            assert not any(name.endswith("optimizer") for name in start)
            assert start["kv_cache"] == plan.kv_bytes and start["reserve"] == 6 * GIB
            assert sum(start.values()) <= capacity, layout.settings()
            accepted += 1
    assert accepted > 4


def test_a_start_that_does_not_fit_is_a_problem():
    """The 32B on H200 if gradients stayed while the engine is built: what this phase is there to refuse."""
    plan = ledger(R_ALIGN_32B, H200)
    assert plan.offload and not plan.problems()
    kept = plan.phases["start"] | {"gradients": plan.phases["learn"]["gradients"]}
    problems = replace(plan, phases={**plan.phases, "start": kept}).problems()
    assert len(problems) == 1 and problems[0].startswith("start needs")
