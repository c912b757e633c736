"""Compiles, without a GPU, the attention that training calls: flash-attn 4 on FakeTensors of `cuda:0`.

The environment names the GPU to compile for (FLASH_ATTENTION_ARCH, CUTE_DSL_ARCH, FLASH_ATTENTION_NUM_SMS) and the
cache (XDG_CACHE_HOME). Writes, for each case and step, the seconds it took, those of its CPU time (other load does not
count) and the number of kernels that the cache got by it.
"""

import json
import sys
import time
from pathlib import Path

import torch
from ralign.engine.policy import flash_attention
from torch._subclasses.fake_tensor import FakeTensorMode

# Query heads, key heads, head size: as a rank of a model has them.
CASES = {
    "64:8 x 128": (64, 8, 128),  # Qwen3-32B
    "8:1 x 128": (8, 1, 128),  # the same, tensor parallel 8
    "5:1 x 128": (5, 1, 128),  # Qwen3-14B, tensor parallel 8
    "32:8 x 64": (32, 8, 64),  # Llama 3.2 1B
    "32:32 x 96": (32, 32, 96),
}

# Compiled for one head size, or ratio of heads, as for another: left out to save minutes.
LEFT_OUT = {
    (32, 64): ("300 sequences",),
    (5, 128): ("forward without gradient", "gradient of the LSE", "300 sequences"),
    (32, 96): ("forward without gradient", "gradient of the LSE", "300 sequences"),
}


def bfloat16(*shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="cuda:0")


def attention_inputs(num_heads: int, num_groups: int, head_size: int, num_sequences: int = 5) -> tuple:
    """A context-parallel rank's: 1024 queries, 2048 keys; value is a part of the projection's output."""
    value = bfloat16(2048, num_heads + 2 * num_groups, head_size)[:, num_heads + num_groups :]
    tensors = bfloat16(1024, num_heads, head_size), bfloat16(2048, num_groups, head_size), value
    bounds = [torch.empty(num_sequences + 1, dtype=torch.int32, device="cuda:0") for _ in range(2)]
    return *(x.requires_grad_() for x in tensors), *bounds


def backward(output: torch.Tensor, d_lse: torch.Tensor | None = None) -> None:
    """The gradient of flash-attn's function by itself: autograd would ask the driver for a device."""
    gradients = output.grad_fn.apply(torch.empty_like(output), d_lse)
    assert [x.shape[0] for x in gradients if x is not None] == [1024, 2048, 2048]


def steps(num_heads: int, num_groups: int, head_size: int) -> dict:
    kernel = flash_attention.varlen_kernel(torch.device("cuda", 0), torch.bfloat16, head_size)
    query, key, value, *bounds = inputs = attention_inputs(num_heads, num_groups, head_size)

    def without_gradient():
        kernel(*(x.detach() for x in inputs), 700, 900)

    def deterministic():
        torch.use_deterministic_algorithms(True)
        backward(kernel(*inputs, 700, 900))
        torch.use_deterministic_algorithms(False)

    def gradient_of_lse():
        options = {"max_seqlen_q": 700, "max_seqlen_k": 900, "causal": True, "return_lse": True}
        output, lse = kernel.args[0](
            query, key, value, cu_seqlens_q=bounds[0], cu_seqlens_k=bounds[1], **options
        )
        assert lse.shape == (num_heads, 1024) and lse.dtype == torch.float32
        backward(output, torch.empty_like(lse))

    def short_sequences():
        for longest in (1, 64, 128, 256):
            backward(kernel(*inputs, longest, longest))

    def many_sequences():
        backward(kernel(*attention_inputs(num_heads, num_groups, head_size, num_sequences=300), 700, 900))

    all_steps = {
        "forward without gradient": without_gradient,
        "forward": lambda: kernel(*inputs, 700, 900),
        "forward and backward": lambda: backward(kernel(*inputs, 700, 900)),
        "deterministic backward": deterministic,
        "gradient of the LSE": gradient_of_lse,
        "short sequences": short_sequences,
        "300 sequences": many_sequences,
    }
    return {
        name: call for name, call in all_steps.items() if name not in LEFT_OUT.get((num_heads, head_size), ())
    }


def num_kernels(folder: Path) -> int:
    return len(list(folder.rglob("*.o")))


def main(result: str, architecture: str) -> None:
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda _device=None: divmod(int(architecture), 10)
    folder = flash_attention._cache_folder(f"sm_{architecture}")
    rows = []
    with FakeTensorMode():
        for case, shape in CASES.items():
            for step, call in steps(*shape).items():
                num_before, start_s, cpu_start_s = (
                    num_kernels(folder),
                    time.perf_counter(),
                    time.process_time(),
                )
                call()
                times = {"time_s": time.perf_counter() - start_s, "cpu_s": time.process_time() - cpu_start_s}
                rows.append(
                    {"case": case, "step": step, "num_compiled": num_kernels(folder) - num_before} | times
                )
    Path(result).write_text(json.dumps(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
