"""The critic is transformers' reward model, and its updates do not depend on how it and the batch are cut."""

import math

import pytest

CLASSES = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama", "mistral": "Mistral", "olmo2": "Olmo2"}


@pytest.mark.jobs
@pytest.mark.parametrize("num_processes", [1, 2])
def test_values_are_those_of_transformers_and_the_export_is_a_reward_model(torchrun, num_processes):
    report = torchrun("values", num_processes)
    assert report.keys() == CLASSES.keys()
    for family, case in report.items():
        differences = [value for name, value in case.items() if name.startswith("max_diff")]
        assert len(differences) == num_processes and max(differences) <= 1e-5, (family, case)
        assert case["bits_equal"] and case["reload_equal"], (family, case)
        assert case["config"] == [1, f"{CLASSES[family]}ForSequenceClassification"]
        # A language model's folder has no value head: all values are 0, and its export has one.
        assert case["fresh_is_zero"] and case["fresh_labels"] == 1, (family, case)


def _compare(reports: dict, reference: list) -> None:
    for name, rows in reports.items():
        bf16 = "bf16" in name
        # In bf16 the first update is close to that in fp32; later ones start from other weights.
        for step, (row, expected) in enumerate(zip(rows[:1] if bf16 else rows, reference, strict=not bf16)):
            for key in ("critic/loss", "critic/grad_norm", "critic/advantage_std", "cubes"):
                assert row[key] == pytest.approx(expected[key], rel=0.05 if bf16 else 1e-4), (name, step, key)
        assert all(math.isfinite(value) for row in rows for value in row.values()), name


@pytest.mark.jobs
def test_every_layout_gives_the_same_updates(torchrun):
    reports = torchrun("critic_layouts", 1) | torchrun("critic_layouts", 2)
    reference = reports.pop("one")
    assert reports.pop("overfitted") > 0.95  # explained variance
    assert len(reports) == 10
    assert len({row["critic/loss"] for row in reference}) == 3
    assert any(0 < row["critic/clipped_share"] < 1 for row in reference)
    assert min(row["edge_margin"] for row in reference) > 5e-5, (
        "rounding decides which values have a gradient"
    )
    _compare(reports, reference)


@pytest.mark.slow
def test_layouts_of_two_kinds_at_once(torchrun):
    reference = torchrun("critic_layouts", 1)["one"]
    _compare(torchrun("critic_layouts", 4), reference)
