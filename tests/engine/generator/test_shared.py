"""Models whose files and config.json disagree about the output layer."""

import pytest


@pytest.mark.jobs
@pytest.mark.parametrize("generate", [2, 1])
def test_a_tied_model_whose_files_hold_the_head_too_starts(torchrun, generate):
    report = torchrun("tied_head", 2, str(generate), timeout_s=400)
    assert report["untied_by_vllm"], "vLLM does not untie this model: the test shows nothing"
    assert report["same_parameter"] and report["difference"] <= 1e-5
    assert report["shared"] == (generate == 2)
    assert "other: config.json sets tie_word_embeddings, but lm_head.weight differs" in report["refusal"]
