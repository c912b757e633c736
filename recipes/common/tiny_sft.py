"""Trains tiny models within seconds, as judges and policies of smoke runs and tests.

Training is plain torch on a transformers model, without the engine.
"""

import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from ralign.engine.config.run import ModelConfig
from ralign.engine.data.chat import PLAIN_CHAT, Messages
from ralign.engine.data.tokenizer import build_tokenizer
from ralign.engine.policy.fresh import create_model_folder
from ralign.engine.runtime.errors import UserError

# Like an instruct model's, but with few tokens, since miniature prompts are short.
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>\n{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)
_WAIT_S = 600.0
_TINY = ModelConfig(
    num_layers=2,
    hidden_size=64,
    ffn_hidden_size=128,
    num_attention_heads=2,
    num_query_groups=1,
    head_dim=32,  # the smallest that vLLM's CPU attention supports
    max_position_embeddings=1024,
)


def train_tiny_model(
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
    """Trains a random `model` on (prompt, answer) examples, writes its Hugging Face folder and returns the last loss.

    The tokenizer is trained on the same texts. `report` is called with the loss of each step.
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
    """Padded ids, their mask, and labels of the answers only: [B, L] int64 each."""
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


def train_tiny_chat_model(folder: str | Path, cases: Sequence[tuple[Messages, str]], **options: Any) -> None:
    """`train_tiny_model` with a chat template, which the tokenizer then has: a tiny instruct model.

    cases: (messages, answer); `options` are those of `train_tiny_model`.
    """
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE()), chat_template=CHAT_TEMPLATE
    )  # for its template only: the vocabulary is trained later

    def prompt(messages: Messages) -> str:
        turns = [{"role": role, "content": content} for role, content in messages]
        return str(words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    train_tiny_model(folder, [(prompt(messages), answer) for messages, answer in cases], **options)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)


def trained_once(path: Path, make: Callable[[Path], None]) -> str:
    """The folder as text. Rank 0 makes it if it does not exist, and the other ranks wait.

    Raises:
        UserError: the folder does not exist after `_WAIT_S` seconds.
    """
    if int(os.environ.get("RANK", "0")) == 0 and not path.exists():
        draft = path.with_name(f"{path.name}.part")
        make(draft)
        os.replace(draft, path)
    until_s = time.monotonic() + _WAIT_S
    while not path.exists():
        if time.monotonic() > until_s:
            raise UserError(f"{path} was not made within {_WAIT_S:g} s")
        time.sleep(0.2)
    return str(path)
