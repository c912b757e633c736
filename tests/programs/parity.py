"""Every family, tied and untied, at TP = world size: logprobs, the bits of the export, planned sizes.

One family is not part of ralign: it is registered here, as a user's program would. On two ranks one family also runs at
CP 2, where both hold every tensor, and one of them writes.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ralign.engine.config.registry import FAMILIES
from ralign.engine.planner.shapes import read_shape
from ralign.engine.policy.families.family import QKV_BIAS, Family, pre_norm_layer
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from safetensors.torch import load_file
from tiny import make_model, make_samples, pack
from transformers import AutoModelForCausalLM

SEED_OSS = Family(
    model_type="seed_oss",
    layer=pre_norm_layer(QKV_BIAS),
    megatron={"add_qkv_bias": True},
    required={"attention_bias": True, "attention_out_bias": False, "mlp_bias": False, "hidden_act": "silu"},
)


def hf_logits_diff(folder, policy, samples, batch) -> float:
    """Largest difference of the full logits' log-softmax at the response tokens and of the entropy."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    output = policy.logprobs([batch])[0].cpu()  # the reference is there
    worst = 0.0
    for sample, logprobs, entropy in zip(
        samples, batch.unpack(output[0]), batch.unpack(output[1]), strict=True
    ):
        ids = torch.tensor([*sample.prompt_ids, *sample.response_ids])
        with torch.no_grad():
            expected = model(ids[None]).logits[0].log_softmax(-1)[len(sample.prompt_ids) - 1 : -1]
        target = expected.gather(1, torch.from_numpy(sample.response_ids)[:, None])[:, 0]
        worst = max(worst, (logprobs - target).abs().max().item())
        worst = max(worst, (entropy + (expected.exp() * expected).sum(-1)).abs().max().item())
    return worst


def compare(folder: Path, cluster) -> dict:
    policy = Policy(folder, cluster)
    samples = make_samples(6)
    batch = pack(samples, cluster, token_budget=4096, pad_multiple=policy.pad_multiple)[0]
    difference = hf_logits_diff(folder, policy, samples, batch)
    exported = folder.with_name(f"{folder.name}-exported-{cluster.cp_size}")
    policy.export(exported)
    again = Policy(exported, cluster)
    reload_equal = bool((again.logprobs([batch])[0] == policy.logprobs([batch])[0]).all())
    before = load_file(folder / "model.safetensors")
    after = {k: v for file in exported.glob("*.safetensors") for k, v in load_file(file).items()}
    if cluster.is_first_rank:
        AutoModelForCausalLM.from_pretrained(exported)
    parts = read_shape(folder).parts(tensor=cluster.tp_size, pipeline=1, stage=0)
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    return {
        "max_diff": difference,
        "reload_equal": reload_equal,
        "bits_equal": before.keys() == after.keys()
        and all(torch.equal(before[name], after[name]) for name in before),
        "sizes_planned": [x for part in parts for x in part] == [x.numel() for x in policy.gpt.parameters()],
        "size_right": index["metadata"]["total_size"] == sum(x.nbytes for x in after.values()),
    }


def main(result: str) -> None:
    torch.set_num_threads(1)
    cluster = cluster_module.start(tensor=dist_size())
    FAMILIES.register(SEED_OSS.model_type, SEED_OSS)
    report = {}
    for family in FAMILIES.names:
        for tied in (True, False):
            folder = Path(result).parent / f"{family}-{tied}-{cluster.tp_size}"
            if cluster.is_first_rank:
                rope = {"rope_type": "default", "rope_theta": 10000.0}
                if family == "llama":
                    rope = dict(
                        rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0,
                        high_freq_factor=4.0, original_max_position_embeddings=64,
                    )  # fmt: skip
                make_model(folder, family, tied=tied, rope_parameters=rope)
            dist.barrier()
            report[f"{family} tied={tied}"] = compare(folder, cluster)
    if cluster.world_size > 1:
        report["qwen3 cp2"] = compare(Path(result).parent / "qwen3-False-2", cluster_module.start(context=2))
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    cluster_module.stop()


def dist_size() -> int:
    import os

    return int(os.environ["WORLD_SIZE"])


if __name__ == "__main__":
    main(sys.argv[1])
