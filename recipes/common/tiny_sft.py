"""A tiny model that was taught some answers, within seconds: stands in for a judge or a policy in smoke runs and tests.

It learns in plain torch, by transformers, with no part of the engine: nothing that a run is about.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from ralign.engine.config.run import ModelConfig
from ralign.engine.data.chat import PLAIN_CHAT
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.policy.fresh import create_model_folder

_TINY = ModelConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=128,
    num_attention_heads=2,
    num_query_groups=1,
    head_dim=32,  # the smallest that vLLM's CPU attention knows
    max_position_embeddings=1024,
)


def teach(
    folder: str | Path,
    examples: Sequence[tuple[str, str]],
    *,
    model: ModelConfig = _TINY,
    vocab_size: int = 512,
    num_steps: int = 120,
    batch_size: int = 16,
    lr: float = 3e-3,
    seed: int = 0,
    report: Callable[[float], None] = lambda loss: None,
) -> float:
    """Writes a Hugging Face folder with a fresh `model` taught (prompt, answer) examples; returns the last loss.

    The tokenizer is trained on the same texts; `report` gets the loss of each step.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer((text for example in examples for text in example), folder, vocab_size)
    tokenizer.chat_template = PLAIN_CHAT
    create_model_folder(folder, model, tokenizer, seed)
    from transformers import AutoModelForCausalLM

    weights = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(weights.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min(1.0, (n + 1) / 10) * (1 - n / num_steps)
    )
    draw = random.Random(seed)
    for _ in range(num_steps):
        batch = _collate([draw.choice(examples) for _ in range(batch_size)], tokenizer)
        loss = weights(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report(loss.item())
    weights.save_pretrained(folder)
    return loss.item()


def _collate(examples: Sequence[tuple[str, str]], tokenizer) -> dict[str, torch.Tensor]:
    """Padded ids, their mask, and labels on the answers alone: [B, L] int64 each."""
    rows = []
    for prompt, answer in examples:
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer_ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt_ids + answer_ids, [-100] * len(prompt_ids) + answer_ids))
    length = max(len(ids) for ids, _ in rows)
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([ids + [pad] * (length - len(ids)) for ids, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (length - len(labels)) for _, labels in rows]),
    }
