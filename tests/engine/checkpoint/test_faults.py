"""A checkpoint that cannot be written or read gives one clear error on every rank, and nothing is destroyed."""

import pytest


@pytest.fixture(scope="module")
def reports(torchrun_module):
    return torchrun_module("checkpoint_faults", 2)


@pytest.mark.jobs
def test_a_full_disk_leaves_the_last_complete_checkpoint(reports):
    for rank in reports:
        found = rank["full_disk"]
        assert "step 2 could not be written" in found["error"]
        assert "the last complete one is step00000001" in found["error"]
        assert "\n" not in found["error"]
        assert "step00000001" in found["names"] and "step00000002" not in found["names"]
        assert found["after"] == ["step00000001", "step00000002"]
    assert "File too large" in reports[0]["full_disk"]["error"]  # the reason, from the rank that failed
    assert not any(name.startswith(".draft") for name in reports[0]["full_disk"]["names"])


@pytest.mark.jobs
def test_a_full_disk_of_rank_0_is_an_error_of_every_rank(reports):
    for rank in reports:
        found = rank["full_disk_of_rank_0"]
        assert "step 3 could not be written" in found["error"] and "File too large" in found["error"]
        assert found["after"] == ["step00000002", "step00000003"]  # the two that are kept
        assert "no room for .metadata; the last complete one is step00000003" in rank["metadata_not_written"]


NAMED = {
    "missing shard": "__1_0.distcp is missing",
    "short shard": "bytes instead of",
    "flipped bit": "the checksum of __1_0.distcp does not match",
    "flipped metadata": "the checksum of .metadata does not match",
    "no manifest": "manifest.json: No such file or directory",
    "garbage manifest": "manifest.json is not a manifest",
}


@pytest.mark.jobs
@pytest.mark.parametrize("way", NAMED)
def test_a_damaged_checkpoint_is_named_and_left_alone(reports, way):
    for rank in reports:
        error = rank["damages"][way]
        assert NAMED[way] in error and "step00000002" in error and "\n" not in error
        assert "nothing was changed (move it away to resume from step00000001)" in error
        assert rank["restored"] == 2  # once it is whole again


@pytest.mark.jobs
def test_an_update_that_is_not_finite_changes_nothing_on_any_rank(reports):
    for rank in reports:
        loss, gradient, nothing = rank["not_finite"]
        for skipped in (loss, gradient):
            assert skipped["same_weights"] and skipped["same_state"]
        assert not nothing["same_weights"] and not nothing["same_state"]
        assert [row["num_skipped"] for row in rank["not_finite"]] == [1, 2, 2]
