"""The critic against transformers' sequence classification, at TP = world size; its export read by transformers."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.config.registry import FAMILIES
from ralign.engine.policy.critic import Critic
from ralign.engine.runtime import cluster as cluster_module
from safetensors.torch import load_file
from tiny import make_model, make_samples, pack
from transformers import AutoConfig, AutoModelForSequenceClassification


def make_reward_model(folder: Path, family: str) -> None:
    """A tied language model's shape with a drawn head, as a reward model's folder."""
    make_model(folder, family, tied=True)
    config = AutoConfig.from_pretrained(folder, num_labels=1)
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)


def hf_values(folder: Path, samples) -> list[torch.Tensor]:
    """Every position's value, from the last hidden states; the last is what the class itself returns."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    values = []
    for sample in samples:
        ids = torch.tensor([*sample.prompt_ids, *sample.response_ids])[None]
        with torch.no_grad():
            hidden = model.model(ids).last_hidden_state[0]
            values.append(model.score(hidden)[:, 0])
            assert torch.allclose(values[-1][-1], model(ids).logits[0, 0], atol=1e-5)
    return values


def difference(critic: Critic, expected: list[torch.Tensor], batch) -> float:
    """Largest over all positions of all samples; the batch holds them in its own order."""
    values, starts = critic.values([batch])[0].cpu(), batch.cu_seqlens.tolist()  # the reference is there
    wanted = [expected[index] for index in batch.indices]
    found = [values[start : start + len(x)] for start, x in zip(starts, wanted, strict=False)]
    return max((x - y).abs().max().item() for x, y in zip(found, wanted, strict=True))


def main(result: str) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start(tensor=int(os.environ["WORLD_SIZE"]))
    samples = make_samples(6)
    batch = pack(samples, cluster, token_budget=4096, pad_multiple=2)[0]
    report = {}
    for family in FAMILIES.names:
        folder = Path(result).parent / f"{family}-{cluster.tp_size}"
        if cluster.is_first_rank:
            make_reward_model(folder, family)
            make_model(folder.with_name(folder.name + "-lm"), family, tied=True)
        dist.barrier()
        expected = hf_values(folder, samples)
        case = report[family] = {}
        for sequence in (False, True) if cluster.tp_size > 1 else (False,):
            critic = Critic(folder, cluster, sequence_parallel=sequence)
            case[f"max_diff, sequence={sequence}"] = difference(critic, expected, batch)
        exported = folder.with_name(folder.name + "-exported")
        critic.export(exported)
        before = load_file(folder / "model.safetensors")
        after = {k: v for file in exported.glob("*.safetensors") for k, v in load_file(file).items()}
        case["bits_equal"] = before.keys() == after.keys() and all(
            torch.equal(before[name], after[name]) for name in before
        )
        case["reload_equal"] = all(map(torch.equal, hf_values(exported, samples), expected))
        config = AutoConfig.from_pretrained(exported)
        case["config"] = [config.num_labels, *config.architectures]
        fresh = Critic(folder.with_name(folder.name + "-lm"), cluster)
        case["fresh_is_zero"] = bool((fresh.values([batch])[0] == 0).all())
        fresh.export(exported)  # a language model's folder becomes a reward model's
        case["fresh_labels"] = AutoModelForSequenceClassification.from_pretrained(exported).num_labels
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1])
