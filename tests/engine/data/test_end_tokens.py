"""Tokens that end an answer: all of a model's folder, never masked, whatever the padding token is."""

import json

import numpy as np
import pytest
from ralign.engine.data.chat import control_ids, encode_text
from ralign.engine.data.examples import decode_answer, encode_answer
from ralign.engine.data.packing import Sample, materialise, plan
from ralign.engine.data.tokenizer import EOS_TOKEN, build_tokenizer, load_tokenizer
from ralign.engine.runtime.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """A model's folder whose answers may end in `[end]`, which is no special token."""
    made = build_tokenizer(["a judge reads two answers"], tmp_path, 300)
    made.add_tokens(["[end]"])
    made.save_pretrained(tmp_path)
    return tmp_path


def write(folder, name, ids):
    (folder / name).write_text(json.dumps({"eos_token_id": ids}))


def test_a_second_end_token_of_the_folder_ends_an_answer_and_is_no_text(folder):
    plain, _ = load_tokenizer(folder)
    end = plain.convert_tokens_to_ids("[end]")
    assert end in encode_text("[end]", plain).tolist()
    write(folder, "generation_config.json", [end, 0])
    write(folder, "config.json", 7)
    tokenizer, ids = load_tokenizer(folder)
    assert ids == [0, end]
    answer = np.append(encode_text("It is B.", tokenizer), end)
    assert decode_answer(answer, tokenizer) == "It is B."
    assert end in control_ids(tokenizer) and end not in encode_text("a [end] b", tokenizer).tolist()
    assert tokenizer.decode(encode_text("a [end] b", tokenizer)) == "a [end] b"
    assert encode_answer("It is B.", tokenizer)[-1] == 0


def test_the_ids_are_those_at_which_vllm_stops(folder):
    assert load_tokenizer(folder)[1] == [0]
    write(folder, "config.json", 7)
    assert load_tokenizer(folder)[1] == [0, 7]
    write(folder, "generation_config.json", [9, 0, 5])
    assert load_tokenizer(folder)[1] == [0, 9, 5]
    write(folder, "generation_config.json", None)
    assert load_tokenizer(folder)[1] == [0]
    write(folder, "generation_config.json", 100_000)  # a padded embedding's
    assert load_tokenizer(folder)[1] == [0]


@pytest.mark.parametrize("ids", ["x", [0, "x"], True, -1, {"a": 1}, 0.5])
def test_another_value_is_named(folder, ids):
    write(folder, "generation_config.json", ids)
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id must be a token id"):
        load_tokenizer(folder)


def test_a_tokenizer_without_an_end_token_takes_the_model_s(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in settings.items() if name != "eos_token"})
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="no token ends an answer"):
        load_tokenizer(folder)
    write(folder, "generation_config.json", 0)
    tokenizer, ids = load_tokenizer(folder)
    assert ids == [0] and tokenizer.eos_token == EOS_TOKEN and encode_answer("x", tokenizer)[-1] == 0


@pytest.mark.parametrize("pad", ["the end token", "none"])
def test_the_end_token_is_in_the_loss_whatever_pads(folder, pad):
    """A batch is packed and its loss mask comes from lengths; a mask by id would lose the end, and ends inside."""
    tokenizer, _ = load_tokenizer(folder)
    tokenizer.pad_token = tokenizer.eos_token if pad == "the end token" else None
    end = tokenizer.eos_token_id
    supervised = encode_answer("It is B.", tokenizer)
    sampled = np.concatenate(
        [[end], encode_text("It is A.", tokenizer), [end]]
    )  # an end among its tokens, too
    prompts = [encode_text("Who is right?", tokenizer), np.array([end, end, 5])]
    samples = [
        Sample(prompt_ids=prompt, response_ids=answer, per_response_token={}, per_sample={})
        for prompt, answer in zip(prompts, (supervised, sampled), strict=True)
    ]
    lengths = [len(sample.prompt_ids) + len(sample.response_ids) for sample in samples]
    (batch,) = materialise(samples, plan(lengths, token_budget=64).of_rank(0), pad_multiple=64)
    mask = batch.loss_mask.bool()
    assert int(mask.sum()) == len(supervised) + len(sampled)
    of_sample = dict(zip(batch.indices.tolist(), batch.unpack(batch.targets), strict=True))
    assert of_sample[0].tolist() == supervised.tolist() and of_sample[1].tolist() == sampled.tolist()
    assert all(part.all() for part in batch.unpack(mask))
