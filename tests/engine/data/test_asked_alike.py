"""All requests about a pair are the same: in training, in `ralign-eval run`, and in an actor's training."""

from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from ralign.engine.actors.task import ActorExample, ActorTask
from ralign.engine.config.actor import ActorRun
from ralign.engine.config.judge import GenRMConfig
from ralign.engine.config.run import DataConfig, GenRMRun
from ralign.engine.data.chat import pair_messages
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import FULL
from ralign.engine.data.questions import OpenQuestion
from ralign.engine.evaluation.journal import Journal
from ralign.engine.evaluation.pipeline import ANSWER_FIELDS, REVIEW_FIELDS, Evaluation
from ralign.engine.judging.comparisons import Schedule
from ralign.engine.judging.judge import Judge, Reply, Usage
from ralign.engine.judging.metarm import RuleMetaRM
from ralign.engine.judging.pairwise import PairwiseReward
from ralign.engine.training.genrm import GenRM
from ralign.engine.training.tasks import Response
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAIR = Pair(
    id="p",
    source="s",
    conversations=[{"role": "user", "content": "Name a tree."}],
    response_A="Ash.",
    response_B="A rose.",
    gt_label="B",
    gt_judgment="",
)


class Listener(Judge):
    """Records its requests and gives no verdict."""

    def __init__(self):
        self.usage, self.asked = Usage(), []

    def submit(self, request):
        self.asked.append(request.messages)
        future: Future = Future()
        future.set_result(Reply(text="no verdict"))
        return future


@pytest.fixture
def tokenizer():
    words = Tokenizer(models.WordLevel({"?": 0, "[user]": 1, "[answer]": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="?",
        chat_template="{% for m in messages %} [{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} [answer]{% endif %}",
    )


def test_ralign_eval_asks_with_the_rubric_as_system_message(tmp_path):
    judge = Listener()
    Evaluation(
        pairs=[PAIR],
        template=FULL,
        both_orders=False,
        judge=judge,
        metarm=RuleMetaRM(),
        answers=Journal(tmp_path / "answers", {}, ANSWER_FIELDS),
        reviews=Journal(tmp_path / "reviews", {}, REVIEW_FIELDS),
        progress=SimpleNamespace(step=lambda **shown: None),
    ).run()
    assert judge.asked == [pair_messages(FULL, PAIR)]
    assert [role for role, _ in judge.asked[0]] == ["system", "user"]


def test_an_actor_s_judge_is_asked_as_it_was_trained(one_rank):
    run, judge = ActorRun(genrm=GenRMConfig(template="full")), Listener()
    reward_model = PairwiseReward(judge, Schedule(scheme="reference", num_samples=1, order="both"))
    examples = [ActorExample(question=OpenQuestion(pair=PAIR), prompt_ids=np.arange(2))]
    task = ActorTask(run, examples, reward_model, one_rank)
    rollout = SimpleNamespace(response_ids=np.arange(3))
    task.judge([Response(example=0, group=0, rollout=rollout, text="Elm.")], 0)
    shown = [replace(PAIR, response_A=a, response_B=b) for a, b in (("Elm.", "A rose."), ("A rose.", "Elm."))]
    assert sorted(judge.asked) == sorted(pair_messages(FULL, pair) for pair in shown)


@pytest.mark.parametrize("chat", [True, False])
def test_training_asks_as_data_chat_says(make_session, tokenizer, chat):
    run = GenRMRun(data=DataConfig(template="full", chat=chat, max_prompt_tokens=2000))
    (example,) = GenRM(make_session(tokenizer=tokenizer), run, None).examples([PAIR])
    assert example.prompt_ids.tolist() == ids_of(pair_messages(FULL, PAIR), tokenizer, chat)
    assert (tokenizer.convert_tokens_to_ids("[answer]") in example.prompt_ids) == chat


def ids_of(messages, tokenizer, chat):
    """By transformers alone."""
    rows = [{"role": role, "content": content} for role, content in messages]
    if chat:
        return tokenizer.apply_chat_template(rows, add_generation_prompt=True, return_dict=False)
    return tokenizer("\n\n".join(row["content"] for row in rows), add_special_tokens=False)["input_ids"]
