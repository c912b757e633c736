"""An actor's settings: what is refused before any model is built, and in which words."""

import json
import re

import pytest
from ralign.engine.actors.validation import check_actor
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.command_line import parse
from ralign.engine.data.prompts import COMPACT
from ralign.engine.runtime.errors import UserError
from ralign.recipes.common.tiny_sft import train_tiny_model
from transformers import AutoTokenizer


def test_a_judge_that_cannot_be_asked_is_refused(tmp_path):
    run = ActorRun()
    check_actor(run)
    run.genrm.model = str(tmp_path)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        check_actor(run)
    (tmp_path / "config.json").write_text("{}")
    check_actor(run)
    run.parallel.tensor = 2
    with pytest.raises(UserError, match="managed"):
        check_actor(run)
    run.genrm.kind = "endpoint"
    with pytest.raises(UserError, match="base_url"):
        check_actor(run)
    run.algo.num_samples = 2
    with pytest.raises(UserError, match="at least 3"):
        check_actor(run)


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("actor.length_penalty", -1.0, "must not be negative, got -1.0"),
        ("actor.error_rate", 1.5, "actor.error_rate is a share from 0 to 1, got 1.5"),
        ("actor.watch_every", -1, "actor.watch_every must be at least 0, got -1"),
        ("genrm.num_tries", 0, "genrm.num_tries must be at least 1, got 0"),
        ("genrm.max_failed_share", 2.0, "genrm.max_failed_share must be from 0 to 1, got 2.0"),
        ("algo.partner", "order", "algo.partner=order is for GenRMs: an actor's prompt has no twin"),
        ("algo.reward", "label", "algo.reward=label is for GenRMs: an actor is trained against genrm.model"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(setting, value, named):
    run = ActorRun()
    group, name = setting.split(".")
    setattr({"actor": run.actor, "genrm": run.genrm, "algo": run.algo}[group], name, value)
    with pytest.raises(UserError, match=named):
        check_actor(run)


def test_a_length_penalty_needs_a_group():
    run = ActorRun()
    run.actor.length_penalty, run.algo.num_samples = 0.1, 1
    with pytest.raises(UserError, match=r"actor.length_penalty=0.1 .* algo.num_samples .* got 1"):
        check_actor(run)


def test_an_actor_has_no_metarm():
    with pytest.raises(UserError, match="unknown setting metarm.kind=endpoint"):
        parse(ActorRun(), ["metarm.kind=endpoint"])


def test_a_question_that_the_genrm_could_not_read_is_refused_at_the_start(tmp_path):
    """What is promised to fit is what the judge's own tokenizer makes of the longest question."""
    train_tiny_model(tmp_path, [("Note: red", "\\boxed{A}")] * 32, num_steps=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    around = len(tokenizer(COMPACT.replace("{prompt}", "").replace("{response_A}", "").replace("{response_B}", ""))[
        "input_ids"
    ])  # fmt: skip
    run = ActorRun()
    run.genrm.model, run.genrm.max_new_tokens = str(tmp_path), 64
    run.data.max_prompt_tokens, run.generator.max_new_tokens = 60, 40
    longest = 60 + 2 * 40 + around + 64
    run.genrm.server.max_model_len = longest
    check_actor(run)
    run.genrm.server.max_model_len = longest - 1
    with pytest.raises(
        UserError, match=f"takes {longest - 1} tokens .* may need {longest}: .* {around} of the"
    ):
        check_actor(run)
    run.genrm.server.max_model_len = None  # then the model's own
    config = json.loads((tmp_path / "config.json").read_text())
    for room, fits in ((longest, True), (longest - 1, False)):
        (tmp_path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": room}))
        if fits:
            check_actor(run)
        else:
            with pytest.raises(UserError, match=f"takes {room} tokens"):
                check_actor(run)
    run.genrm.kind, run.genrm.base_url = "endpoint", "http://127.0.0.1:1/v1"
    check_actor(run)  # a server that runs already knows its own limit
