"""Responses of an engine with two end tokens, and their texts; result to argv[1]."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.data.examples import decode_answer
from ralign.engine.data.tokenizer import build_tokenizer, load_tokenizer
from ralign.engine.generator.generator import Generator
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from tiny import make_model


def main(result: str) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start()
    folder = Path(result).parent / "model"
    made = build_tokenizer(["a judge reads two answers"], folder, 300)
    made.add_tokens(["[end]"])
    made.save_pretrained(folder)
    make_model(folder, "qwen3", tied=True, head_dim=32, vocab_size=len(made))
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({"eos_token_id": [made.eos_token_id, len(made) - 1]}))
    tokenizer, end_token_ids = load_tokenizer(folder)
    settings.unlink()  # vLLM reads it, too: what stops the engine here are the ids that it is given
    policy = Policy(folder, cluster, temperature=1.0, dtype="fp32")
    generator = Generator(
        policy, cluster, GeneratorConfig(kv_cache_gib=0.1), max_model_len=128, eos_token_id=end_token_ids
    )
    generator.wake()
    rollouts = generator.generate([[20, 21, 22]], num_samples=200, max_new_tokens=64, temperature=1.0, seed=1)
    report = {
        "end_token_ids": end_token_ids,
        "responses": [
            [rollout.response_ids.tolist(), rollout.finish_reason, len(rollout.logprobs)]
            for rollout in rollouts
        ],
        "texts": [decode_answer(rollout.response_ids, tokenizer) for rollout in rollouts],
        "texts_without_end": [
            tokenizer.decode(rollout.response_ids[:-1].tolist(), skip_special_tokens=True)
            for rollout in rollouts
        ],
    }
    Path(result).write_text(json.dumps(report))
    dist.barrier()
    generator.close()
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
