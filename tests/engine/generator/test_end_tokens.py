"""A model with several end tokens: the engine stops at each, and the answer's text is without it."""

import pytest


@pytest.mark.jobs
def test_the_engine_stops_at_each_end_token_which_stays_in_the_response(torchrun):
    report = torchrun("end_tokens", 1, timeout_s=200)
    ends = report["end_token_ids"]
    assert len(ends) == 2
    stopped = {end: 0 for end in ends}
    for number, (ids, finish_reason, num_logprobs) in enumerate(report["responses"]):
        assert num_logprobs == len(ids) and not set(ids[:-1]) & {*ends}
        assert (finish_reason == "stop") == (ids[-1] in ends)
        if finish_reason == "stop":
            stopped[ids[-1]] += 1
            assert report["texts"][number] == report["texts_without_end"][number]
    assert all(stopped.values()), stopped
