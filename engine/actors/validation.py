"""Refuses settings of an actor's training that cannot work, before any model is built."""

import json
from pathlib import Path

from ralign.engine.config.actor import ActorRun
from ralign.engine.config.algo import AlgoConfig
from ralign.engine.config.judge import check_endpoint, check_judge
from ralign.engine.runtime.errors import UserError


def check_actor(run: ActorRun) -> None:
    """Raises UserError for settings that cannot work together."""
    actor = run.actor
    for name in ("error_rate", "habit_rate", "cue_share"):
        if not 0 <= (value := getattr(actor, name)) <= 1:
            raise UserError(f"actor.{name} is a share from 0 to 1, got {value}")
    if run.algo.partner != "none":
        raise UserError(f"algo.partner={run.algo.partner} is for GenRMs: an actor's prompt has no twin")
    if run.eval.every:
        raise UserError(f"eval.every={run.eval.every} is for GenRMs: an actor has actor.watch_every")
    if run.eval.metarm.kind != "same":
        raise UserError(f"eval.metarm.kind={run.eval.metarm.kind} is for GenRMs")
    if run.checkpoint.keep_best and not actor.watch_every:
        raise UserError(
            f"checkpoint.keep_best={run.checkpoint.keep_best} needs a held-out metric: set"
            " checkpoint.watch=actor/win_rate and actor.watch_every"
        )
    if run.checkpoint.keep_best and run.checkpoint_every % actor.watch_every:
        raise UserError(
            f"checkpoint.watch={run.checkpoint.watch} is measured every actor.watch_every={actor.watch_every} steps,"
            f" which does not divide checkpoint_every={run.checkpoint_every}"
        )
    if actor.watch_every < 0:
        raise UserError(f"actor.watch_every must be at least 0, got {actor.watch_every}")
    if actor.length_penalty < 0:
        raise UserError(f"actor.length_penalty must not be negative, got {actor.length_penalty}")
    if actor.length_penalty and run.algo.num_samples < 2:
        raise UserError(
            f"actor.length_penalty={actor.length_penalty} compares lengths within a group:"
            f" algo.num_samples must be at least 2, got {run.algo.num_samples}"
        )
    if run.algo.reward != AlgoConfig().reward:
        raise UserError(
            f"algo.reward={run.algo.reward} is for GenRMs: an actor is trained against genrm.model, or the oracle"
        )
    check_judge(run.genrm)
    if run.genrm.model is not None:
        _check_genrm(run)


def _check_genrm(run: ActorRun) -> None:
    from ralign.engine.data.prompts import load_template
    from ralign.engine.data.verdicts import read_form
    from ralign.engine.judging.comparisons import Schedule

    actor, genrm = run.actor, run.genrm
    assert genrm.model is not None
    Schedule(scheme=actor.scheme, num_samples=run.algo.num_samples, order=actor.order, value=actor.value)
    load_template(genrm.template)
    read_form("genrm.verdict", genrm.verdict)
    if genrm.kind == "endpoint":
        check_endpoint(genrm)
        return
    if (
        not (_is_hub_name(genrm.model) and genrm.kind == "managed")
        and not (Path(genrm.model) / "config.json").is_file()
    ):
        raise UserError(f"genrm.model={genrm.model}: no Hugging Face folder (config.json is missing)")
    tensor = run.generator.tensor or run.parallel.tensor
    if genrm.kind == "process" and tensor > 1:
        raise UserError(
            f"genrm.kind=process needs engines of one rank each, got a tensor-parallel size of {tensor}: "
            "use genrm.kind=managed"
        )
    check_context(run)


def check_context(run: ActorRun) -> None:
    """UserError if the longest question and its answer do not fit the GenRM: such a comparison would fail each time.

    Prompt and answers count in the actor's tokens, the template in the GenRM's. Not known here: what a server that
    runs already takes, and how long fixed answers are.
    """
    assert run.genrm.model is not None
    folder, limit = Path(run.genrm.model), run.genrm.server.max_model_len
    is_folder = (folder / "config.json").is_file()
    if limit is None and is_folder:
        limit = json.loads((folder / "config.json").read_text(encoding="utf-8")).get(
            "max_position_embeddings"
        )
    if limit is None:
        return
    template = _num_template_tokens(run) if is_folder else 0
    answer, prompt = run.generator.max_new_tokens, run.data.max_prompt_tokens
    longest = prompt + 2 * answer + template + run.genrm.max_new_tokens
    if longest > limit:
        raise UserError(
            f"the GenRM takes {limit} tokens (genrm.server.max_model_len, or the model's), but a comparison may need"
            f" {longest}: data.max_prompt_tokens={prompt}, 2 x generator.max_new_tokens={answer}, {template} of the"
            f" template and genrm.max_new_tokens={run.genrm.max_new_tokens}"
        )


def _num_template_tokens(run: ActorRun) -> int:
    """Tokens of a question without prompt and answers, as the GenRM reads it."""
    from ralign.engine.data.chat import encode_messages, pair_messages
    from ralign.engine.data.pairs import Pair
    from ralign.engine.data.prompts import load_template
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(run.genrm.model)
    empty = Pair(
        id="",
        source="",
        conversations=[{"role": "user", "content": ""}],
        response_A="",
        response_B="",
        gt_label="A",
        gt_judgment="",
    )
    messages = pair_messages(load_template(run.genrm.template), empty)
    return len(encode_messages([messages], tokenizer, chat=bool(tokenizer.chat_template))[0].ids)


def _is_hub_name(name: str) -> bool:
    """ORG/NAME, and no folder of that name is begun here (then a mistyped folder is the likelier)."""
    organisation, slash, model = name.partition("/")
    return bool(organisation and slash and model and "/" not in model) and not Path(organisation).exists()
