import pytest
from hypothesis import given
from hypothesis import strategies as st
from ralign.engine.data.prompts import COMPACT, render
from ralign.engine.data.tokenizer import EOS_TOKEN, PAD_TOKEN, build_tokenizer
from ralign.engine.data.worlds.judgeworld import JudgeWorldConfig, build_judgeworld, cue_judge
from ralign.engine.data.worlds.words import VALUES
from ralign.engine.runtime.errors import UserError
from transformers import AutoTokenizer

PAIRS = build_judgeworld(
    JudgeWorldConfig(num_values=6, num_train=1500, num_warm_start=1, num_dev=1, num_test=1)
)["train"]
TEXTS = [render(COMPACT, pair) + text for pair in PAIRS for text in (pair.gt_judgment, cue_judge(pair))]
WORDS = [word for item, values in VALUES.items() for word in (item, *values)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return build_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer"), 512)


def test_an_item_or_value_word_is_one_token_wherever_it_stands(tokenizer):
    token_of_word = {word: tokenizer.encode(f" {word}") for word in WORDS}
    assert all(len(tokens) == 1 for tokens in token_of_word.values())
    for text in TEXTS[:200]:
        pieces = [tokenizer.decode([token]) for token in tokenizer.encode(text)]
        words = [piece.strip() for piece in pieces]
        for word in WORDS:
            in_text = text.replace("\n", " ").replace(".", " ").split().count(word)
            assert words.count(word) == pieces.count(f" {word}") == in_text


def test_encoding_prompt_and_judgment_apart_or_together_gives_the_same_tokens(tokenizer):
    for pair in PAIRS[:50]:
        for judgment in (pair.gt_judgment, cue_judge(pair)):
            prompt = render(COMPACT, pair)
            apart = tokenizer.encode(prompt) + tokenizer.encode(judgment)
            assert apart == tokenizer.encode(prompt + judgment)


@given(text=st.text())
def test_every_text_can_be_encoded_and_decoded(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_saved_folder_loads_as_the_same_tokenizer(tmp_path):
    made = build_tokenizer(TEXTS, tmp_path, 512)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == made.get_vocab() and len(loaded) <= 512
    assert (loaded.eos_token, loaded.pad_token) == (EOS_TOKEN, PAD_TOKEN)
    assert loaded.encode(TEXTS[0] + " 雪 \\boxed{A}") == made.encode(TEXTS[0] + " 雪 \\boxed{A}")


def test_the_same_texts_give_the_same_files(tmp_path):
    for folder in ("one", "two"):
        build_tokenizer(TEXTS, tmp_path / folder, 400)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_a_vocabulary_without_room_for_the_bytes_is_refused(tmp_path):
    with pytest.raises(UserError, match="vocab_size"):
        build_tokenizer(TEXTS, tmp_path, 257)
