"""The host waits for the device once an update, in a whole step with a KL term, whatever the number of micro-batches
and stages."""

import pytest


@pytest.mark.jobs
@pytest.mark.parametrize("num_stages", [1, 2])
def test_a_step_reads_the_device_once_an_update(torchrun, num_stages):
    report = torchrun("host_syncs", num_stages)
    assert len(report) == 3
    for case, counts in report.items():
        assert len(counts["num_micro_batches"]) == 2 and min(counts["num_micro_batches"]) > 1  # two updates
        assert len(counts["places"]) == num_stages
        num_models = 2 if "ppo" in case else 1
        for places in counts["places"]:
            updates = [place for place in places if place.startswith("tolist at megatron_model.py")]
            others = [place for place in places if place not in updates]
            assert len(updates) == 2 * num_models, (case, places)
            # PPO's metrics: mean and deviation of the advantages, after the updates.
            assert len(others) == (1 if num_models == 2 else 0), (case, places)
            assert all(place.startswith("tolist at ppo.py") for place in others), (case, places)
