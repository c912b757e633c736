"""An actor's settings: what is refused before any model is built, and in which words."""

import json
import re

import pytest
from ralign.engine.actors.validation import check_actor
from ralign.engine.config.actor import ActorRun
from ralign.engine.data.prompts import COMPACT
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.tiny_sft import teach
from transformers import AutoTokenizer


def test_a_judge_that_cannot_be_asked_is_refused(tmp_path):
    run = ActorRun()
    check_actor(run)
    run.actor.genrm = str(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check_actor(run)
    (tmp_path / "config.json").write_text("{}")
    check_actor(run)
    run.parallel.tensor = 2
    with pytest.raises(UserError, match="managed"):
        check_actor(run)
    run.actor.judge = "endpoint"
    with pytest.raises(UserError, match="base_url"):
        check_actor(run)
    run.algo.num_samples = 2
    with pytest.raises(UserError, match="at least 3"):
        check_actor(run)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"length_penalty": -1.0}, "must not be negative, got -1.0"),
        ({"length_penalty": 0.1, "num_samples": 1}, "actor.length_penalty=0.1 .* algo.num_samples .* got 1"),
        ({"metarm": "endpoint"}, "judge.metarm=endpoint: an actor's training asks no MetaRM"),
        ({"metarm": "managed"}, "judge.metarm=managed"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings, named):
    run = ActorRun()
    for name, value in settings.items():
        part = next(x for x in (run.actor, run.algo, run.judge) if name in type(x).__dataclass_fields__)
        setattr(part, name, value)
    with pytest.raises(UserError, match=named):
        check_actor(run)


def test_a_question_that_the_genrm_could_not_read_is_refused_at_the_start(tmp_path):
    """What is promised to fit is what the judge's own tokenizer makes of the longest question."""
    teach(tmp_path, [("Note: red", "\\boxed{A}")] * 32, num_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    around = len(tokenizer(COMPACT.replace("{prompt}", "").replace("{response_A}", "").replace("{response_B}", ""))[
        "input_ids"
    ])  # fmt: skip
    run = ActorRun()
    run.actor.genrm, run.judge.max_new_tokens = str(tmp_path), 64
    run.data.max_prompt_tokens, run.generator.max_new_tokens = 60, 40
    longest = 60 + 2 * 40 + around + 64
    run.judge.server.max_model_len = longest
    check_actor(run)
    run.judge.server.max_model_len = longest - 1
    with pytest.raises(
        UserError, match=f"takes {longest - 1} tokens .* may need {longest}: .* {around} of the"
    ):
        check_actor(run)
    run.judge.server.max_model_len = None  # then the model's own
    config = json.loads((tmp_path / "config.json").read_text())
    for room, fits in ((longest, True), (longest - 1, False)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": room}))
        if fits:
            check_actor(run)
        else:
            with pytest.raises(UserError, match=f"takes {room} tokens"):
                check_actor(run)
    run.actor.judge, run.judge.base_url = "endpoint", "http://127.0.0.1:1/v1"
    check_actor(run)  # a server that runs already knows its own limit
