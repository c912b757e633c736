"""The time of a step: terms add up, and each is what the engine does, counted by hand."""

from dataclasses import replace

import pytest
from ralign.engine.planner.cli import recipe_run
from ralign.engine.planner.hardware import CHIPS, Constants
from ralign.engine.planner.job import Job
from ralign.engine.planner.memory import ledger
from ralign.engine.planner.shapes import PUBLISHED
from ralign.engine.planner.time import (
    StepTime,
    Term,
    bubble_share,
    num_matrix_parameters,
    step_time,
)

H100, H200 = CHIPS["h100"], CHIPS["h200"]
CONSTANTS = Constants(mean_prompt_tokens=104, mean_new_tokens=3251)
HIDDEN, LAYERS, VOCAB = 5120, 64, 151_936  # Qwen3-32B
TABLE = VOCAB * HIDDEN


def make_job(**changes) -> Job:
    """The 32B on 32 GPUs with t4 p4, four updates a step; answers of at most 3,992 tokens."""
    job = Job.of(recipe_run("r_align_32b"), 32, PUBLISHED["Qwen3-32B"])
    base = {
        "tensor": 4,
        "pipeline": 4,
        "generate_tensor": 4,
        "token_budget": 4096,
        "max_prompt_tokens": 104,
        "max_new_tokens": 3992,
        "num_prompts": 64,
        "num_samples": 32,
        "num_updates": 4,
    }
    return replace(job, **(base | changes))


def time_of(job: Job, constants: Constants = CONSTANTS) -> StepTime:
    return step_time(job, ledger(job, H100.memory_bytes), H100, constants)


def term_of(time: StepTime, phase: str, name: str) -> Term:
    (term,) = (term for term in time.terms if term.phase == phase and term.name.startswith(name))
    return term


TOKENS = 64 * 32 * (104 + 3251)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_updates": 1, "has_reference": False},
        {"tensor": 8, "pipeline": 1, "generate_tensor": 8},
        {"tensor": 4, "pipeline": 1, "context": 2, "recompute": True},
        {"tensor": 8, "pipeline": 1, "generate_tensor": 8, "critic": PUBLISHED["Qwen3-8B"].as_critic()},
    ],
)
def test_terms_add_up_to_phases_and_total(changes):
    time = time_of(make_job(**changes))
    assert sum(time.seconds.values()) == pytest.approx(time.total_s, rel=1e-12)
    for phase, seconds in time.seconds.items():
        own = [term for term in time.terms if term.phase == phase]
        assert seconds == pytest.approx(sum(term.amount * term.unit_s for term in own), rel=1e-12)
    for term in time.terms:
        assert term.amount >= 0
        if term.peak is not None:
            assert term.unit_s == pytest.approx(1 / (term.peak * term.efficiency))
    assert time.tokens == TOKENS
    assert time.tokens_a_day == pytest.approx(TOKENS * 86400 / time.total_s)
    expected = {"generate", "judge", "logprobs", "learn", "update", "sync"}
    expected -= set() if changes.get("has_reference", True) else {"logprobs"}
    assert expected <= time.seconds.keys()
    assert ("critic" in time.seconds) == ("values" in time.seconds) == ("critic" in changes)


def test_the_32b_s_learning_and_logprobs_by_hand():
    time = time_of(make_job())
    multiplied = 32_762_123_264 - TABLE  # a lookup in the input embedding multiplies nothing
    assert term_of(time, "learn", "matrices").amount == pytest.approx(6 * multiplied * TOKENS / 32)
    assert term_of(time, "learn", "matrices").peak == 989e12
    # Scores and their product with the values, half of the square each: 2 l N D a layer and token.
    attention = 2 * 3355 * LAYERS * 64 * 128
    assert term_of(time, "learn", "attention").amount == pytest.approx(3 * attention * TOKENS / 32)
    # Old and reference logprobs: two forwards, of which learning has three.
    for name in ("matrices", "attention"):
        forward = term_of(time, "logprobs", name).amount
        assert forward == pytest.approx(term_of(time, "learn", name).amount * 2 / 3)
    # Two all-reduces a layer and direction, each 2 (t - 1) / t of the hidden states; 70 % of it exposed.
    volume = 4 * 2 * 3 / 4 * (LAYERS / 4) * (TOKENS / 2) * HIDDEN * 2
    collectives = term_of(time, "learn", "tensor-parallel")
    assert collectives.amount == pytest.approx(0.7 * volume) and collectives.peak == 450e9


def test_a_tied_table_is_multiplied_as_the_head_and_an_untied_one_is_not():
    tied, own = PUBLISHED["Qwen3-4B"], PUBLISHED["Qwen3-8B"]
    assert num_matrix_parameters(tied) == tied.num_parameters
    assert num_matrix_parameters(own) == own.num_parameters - VOCAB * 4096
    critic = own.as_critic()  # a value head of one row
    assert num_matrix_parameters(critic) == critic.num_parameters - VOCAB * 4096
    assert num_matrix_parameters(critic) < num_matrix_parameters(own) - 0.99 * VOCAB * 4096


def test_each_update_fills_and_drains_the_pipeline():
    """Four updates of a quarter of the micro-batches each have four times the idle ends of one update."""
    one, four = make_job(num_updates=1), make_job(num_updates=4)
    per_update = TOKENS / (4 * 2 * 4096)
    assert bubble_share(four, TOKENS) == pytest.approx(3 / per_update)
    assert bubble_share(four, TOKENS) == pytest.approx(4 * bubble_share(one, TOKENS))
    for phase in ("learn", "logprobs"):
        time = time_of(four)
        bubble = term_of(time, phase, "pipeline bubble")
        assert bubble.amount == 4 * 3
        # While a stage is idle the others compute and wait for their collectives.
        work_s = time.seconds[phase] - bubble.seconds
        assert bubble.seconds == pytest.approx(work_s * 3 / per_update)
        assert work_s > sum(term_of(time, phase, name).seconds for name in ("matrices", "attention"))


def test_the_engine_fetches_the_weights_once_a_step_however_many_updates_there_were():
    times = [time_of(make_job(num_updates=n)).seconds["sync"] for n in (1, 4)]
    # A quarter of the model less the stage that the rank has, over the network: four stages span two nodes.
    by_hand = 0.75 * 32_762_123_264 * 2 / 4 / (50e9 * 0.75)
    assert times == pytest.approx([by_hand, by_hand])
    assert time_of(make_job(pipeline=1)).seconds["sync"] == 0.0


@pytest.mark.parametrize("recompute, gathers", [(False, 2), (True, 3)])
def test_keys_and_values_are_gathered_in_every_forward_and_their_gradients_scattered(recompute, gathers):
    time = time_of(make_job(pipeline=1, context=2, recompute=recompute))
    once = LAYERS * 2 * (8 // 4) * 128 * 2 * (TOKENS / 4) / 2  # half of it is the other rank's
    assert term_of(time, "learn", "keys and values").amount == pytest.approx(gathers * once)
    assert term_of(time, "logprobs", "keys and values").amount == pytest.approx(2 * once)


def test_decoding_reads_weights_or_multiplies_and_reads_the_cache_besides():
    few = time_of(make_job())
    weights = (32_762_123_264 - TABLE) * 2 / 4
    assert term_of(few, "generate", "weights read").amount == pytest.approx(3992 * weights)
    assert term_of(few, "generate", "decode steps").amount == 3992  # somebody's answer is the longest
    sequences = 256 * 3251 / 3992
    cache = 3992 * sequences * (104 + 3251 / 2) * (2 * LAYERS * 2 * 128 * 2)
    assert term_of(few, "generate", "KV cache").amount == pytest.approx(cache)
    # With many sequences the matrices cost more than reading them; attention's reads come on top all the same.
    job = make_job(num_samples=128, max_num_seqs=1024)
    plan = replace(ledger(job, H200.memory_bytes), kv_bytes=10**15)
    many = step_time(job, plan, H200, CONSTANTS)
    flops = 1024 * 3251 * 2 * weights / 2
    assert term_of(many, "generate", "matrices").amount == pytest.approx(flops)
    assert not [term for term in many.terms if term.name.startswith("weights read")]
    matrices, read = (term_of(many, "generate", name).seconds for name in ("matrices", "KV cache"))
    assert many.seconds["generate"] > matrices + read > 1.5 * matrices


def test_known_mean_lengths_come_before_shares_of_the_longest():
    job = make_job()
    shares = Constants(mean_prompt=1.0, mean_response=3251 / 3992)
    assert time_of(job, shares).total_s == pytest.approx(time_of(job).total_s)
    assert time_of(job, replace(shares, mean_new_tokens=1000)).tokens == 64 * 32 * 1104


def test_offloading_hides_behind_learning_only_as_far_as_learning_lasts():
    job = make_job(offload="always")
    slow_host = replace(H100, host_link=1e6)
    moved = ledger(job, H100.memory_bytes).host["optimizer"]
    for chip, back in ((H100, 0.0), (slow_host, moved / (1e6 * 0.75))):
        time = step_time(job, ledger(job, chip.memory_bytes), chip, CONSTANTS)
        away = moved / (chip.host_link * 0.75)
        expected = away + (back - time.seconds["learn"] if back else 0.0)
        assert time.seconds["offload"] == pytest.approx(expected)
