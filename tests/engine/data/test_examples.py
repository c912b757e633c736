"""A judge's training prompts: in a chat template the very tokens that evaluation asks with, and plain text without."""

import json

import pytest
from ralign.engine.config.run import DataConfig, ModelConfig, Run
from ralign.engine.config.validation import validate
from ralign.engine.data.chat import encode_messages, pair_messages
from ralign.engine.data.examples import decode_answer, encode, encode_answer
from ralign.engine.data.pairs import Pair
from ralign.engine.data.prompts import FULL, load_template, render
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.runtime.errors import UserError

# Qwen3's, without its tools: turns between special tokens, thinking switched off by an empty thought.
QWEN_LIKE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}"
)
PAIR = Pair(
    id="p",
    source="s",
    conversations=[
        {"role": "user", "content": "Name a tree."},
        {"role": "assistant", "content": "Oak."},
        {"role": "user", "content": "Another one?\n\n{prompt} is literal."},
    ],
    response_A="Ash.\n\nIt grows fast.",
    response_B="A rose.",
    gt_label="A",
    gt_judgment="Response B names no tree. \\boxed{A}",
)


@pytest.fixture
def tokenizer(tmp_path):
    made = build_tokenizer([FULL, PAIR.gt_judgment], tmp_path / "tokenizer", 400)
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.eos_token, made.chat_template = "<|im_end|>", QWEN_LIKE
    return made


@pytest.fixture
def own_template(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("Judge {so}.\n\nBe fair.\n\nAsked: {prompt}\n\nOne: {response_A}\n\nTwo: {response_B}")
    return str(path)


def prompt_ids(tokenizer, template, chat):
    ((example,), _) = encode([PAIR], tokenizer, template, 10_000, chat=chat)
    return example.prompt_ids.tolist()


@pytest.mark.parametrize("name", ["full", "compact", "own"])
@pytest.mark.parametrize("chat", [True, False])
def test_training_asks_with_the_tokens_that_an_evaluated_folder_is_asked_with(
    tokenizer, own_template, name, chat
):
    template = load_template(own_template if name == "own" else name)
    asked = encode_messages([pair_messages(template, PAIR)], tokenizer, chat=chat)[0].ids.tolist()
    assert prompt_ids(tokenizer, template, chat) == asked
    assert (tokenizer.convert_tokens_to_ids("<|im_start|>") in asked) == chat


def test_the_rubric_is_the_system_message_and_the_pair_the_user_s(tokenizer):
    text = tokenizer.decode(prompt_ids(tokenizer, FULL, True))
    rubric, _, shown = render(FULL, PAIR).partition("\n\n[Dialogue before the message]")
    assert text == (
        f"<|im_start|>system\n{rubric}<|im_end|>\n"
        f"<|im_start|>user\n[Dialogue before the message]{shown}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "\\boxed{A}" in rubric and "There are no ties." in rubric


@pytest.mark.parametrize("name", ["full", "compact", "own"])
def test_the_messages_in_plain_text_are_the_whole_prompt(tokenizer, own_template, name):
    template = load_template(own_template if name == "own" else name)
    roles, contents = zip(*pair_messages(template, PAIR), strict=True)
    assert roles == (("user",) if name == "compact" else ("system", "user"))
    assert "\n\n".join(contents) == render(template, PAIR)
    plain = tokenizer(render(template, PAIR), add_special_tokens=False)["input_ids"]
    assert prompt_ids(tokenizer, template, False) == plain


def test_an_answer_ends_with_the_tokenizer_s_end_of_turn(tokenizer):
    answer = encode_answer(PAIR.gt_judgment, tokenizer)
    assert answer[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert decode_answer(answer, tokenizer) == PAIR.gt_judgment


def test_the_template_s_own_tokens_count_towards_the_limit(tokenizer):
    plain = len(prompt_ids(tokenizer, FULL, False))
    assert len(encode([PAIR], tokenizer, FULL, plain)[0]) == 1
    with pytest.raises(UserError, match=f"max_prompt_tokens={plain} is too small for all of 1 pairs"):
        encode([PAIR], tokenizer, FULL, plain, chat=True)


def test_without_a_chat_template_chat_is_refused(tokenizer, tmp_path):
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="data.chat=True: the tokenizer in .* has no chat template"):
        encode([PAIR], tokenizer, FULL, 10_000, chat=True)


@pytest.mark.parametrize(
    ("kept_in", "said"),
    [
        ("tokenizer_config.json", None),
        ("chat_template.jinja", None),
        ("nowhere", "data.chat=True: the tokenizer in model.hf_path=.* has no chat template"),
        (
            "nothing readable",
            r"data.chat=True: cannot read a chat template .*tokenizer_config.json: not JSON",
        ),
        ("no model", "data.chat=True needs .* a model without model.hf_path has none"),
    ],
)
def test_a_missing_chat_template_is_found_before_any_model_is_built(tmp_path, kept_in, said):
    sizes = {
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
        "max_position_embeddings": 1024,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    settings = {"chat_template": QWEN_LIKE} if kept_in == "tokenizer_config.json" else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    if kept_in == "nothing readable":
        (tmp_path / "tokenizer_config.json").write_text("{")
    if kept_in == "chat_template.jinja":
        (tmp_path / kept_in).write_text(QWEN_LIKE)
    folder = None if kept_in == "no model" else str(tmp_path)
    run = Run(model=ModelConfig(hf_path=folder), data=DataConfig(chat=True))
    if said is None:
        validate(run, 1)
        return
    with pytest.raises(UserError, match=said):
        validate(run, 1)
    run.data.chat = False
    validate(run, 1)
