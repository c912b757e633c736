"""A tied model whose files hold the head as well, as some published ones do; result to argv[1], generator's TP argv[2].

Also a head that differs from the embedding, which no tied model could keep.
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist
from ralign.engine.config.run import GeneratorConfig
from ralign.engine.generator.generator import Generator
from ralign.engine.policy.policy import Policy
from ralign.engine.runtime import cluster as cluster_module
from ralign.engine.runtime.errors import UserError
from safetensors.torch import load_file, save_file
from tiny import make_model


def add_head(folder: Path, scale: float) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * scale
    save_file(tensors, file, metadata={"format": "pt"})


def main(result: str, generate: int) -> None:
    cluster = cluster_module.start(tensor=2)
    folder = Path(result).parent / "model"
    other = folder.with_name("other")
    if cluster.is_first_rank:
        for path, scale in ((folder, 1.0), (other, 2.0)):
            make_model(path, "qwen3", tied=True, head_dim=32)
            add_head(path, scale)
    dist.barrier()
    policy = Policy(folder, cluster)
    config = GeneratorConfig(kv_cache_gib=0.1, tensor=generate)
    generator = Generator(policy, cluster, config, max_model_len=128, eos_token_id=0)
    generator.verify()
    report = {
        "untied_by_vllm": generator.llm.model_config.word_embeddings_untied_by_checkpoint,
        "difference": generator.prove(),
        "shared": generator.is_shared,
        "same_parameter": generator.llm.apply_model(
            lambda model: model.lm_head.weight is model.model.embed_tokens.weight
        )[0],
    }
    try:
        Policy(other, cluster)
    except UserError as error:
        report["refusal"] = str(error)
    if cluster.is_first_rank:
        Path(result).write_text(json.dumps(report))
    dist.barrier()
    generator.close()
    cluster_module.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
