"""All Triton kernels compile for three generations of GPUs, without a GPU, and spill no register.

The public functions run here on CPU tensors and their launches are recorded, not executed. So the kernels are compiled
with the argument types, block sizes and warps of a real run. `pytest -s` (or `-rP`) prints the registers and spills of
each kernel.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
from ralign.kernels.advantages import DR_GRPO, GRPO, RLOO
from ralign.kernels.gae import gae
from ralign.kernels.linear_policy_loss import linear_policy_loss
from ralign.kernels.logprob import logprob
from ralign.kernels.objectives import CISPO
from ralign.kernels.policy_loss import policy_loss
from ralign.kernels.rms_norm import rms_norm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
TYPES = {
    torch.float32: "fp32", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32", torch.uint8: "u8",
    torch.float64: "fp64",
}  # fmt: skip
pytestmark = [
    pytest.mark.compiler,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter replaces the compiler"
    ),
]


@pytest.fixture(params=["triton"])
def implementation(request, monkeypatch):
    """Selects Triton on CPU tensors; the launches are recorded."""
    for op in ("advantages", "gae", "policy_loss", "rms_norm", "row_stats"):
        monkeypatch.setattr(f"ralign.kernels.{op}.uses_triton", lambda *_: True)


@pytest.fixture
def launches(monkeypatch):
    recorded = []
    monkeypatch.setattr(
        JITFunction, "run", lambda self, *args, **kwargs: recorded.append((self, args, kwargs))
    )
    return recorded


def compile_for(architecture, kernel, args, kwargs):
    """Specialises as the launcher does: 1 is a constant, and pointers and sizes may be divisible by 16."""
    options = {"num_warps": kwargs.pop("num_warps", 4)}
    values = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    values = {name: values[name] for name in kernel.arg_names}
    signature, constants, attributes = {}, {}, {}
    for index, (param, (name, value)) in enumerate(zip(kernel.params, values.items(), strict=True)):
        if param.is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], divisible = f"*{TYPES[value.dtype]}", value.data_ptr() % 16 == 0
            attributes |= {(index,): [["tt.divisibility", 16]]} if divisible else {}
        else:
            signature[name] = "i32" if value < 2**31 else "i64"
            attributes |= {(index,): [["tt.divisibility", 16]]} if value % 16 == 0 else {}
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def registers_and_stack(compiled, folder):
    """Returns the registers and the bytes of stack (spills) that the assembler gave a thread."""
    path = folder / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    out = subprocess.run(
        [TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True
    ).stdout
    return int(re.search(r"REG:(\d+)", out)[1]), int(re.search(r"STACK:(\d+)", out)[1])


def use_every_kernel(dtype):
    torch.manual_seed(0)
    targets = torch.zeros(64, dtype=torch.int64)
    logits = torch.randn(64, 151_936, dtype=dtype, requires_grad=True)
    values = logprob(logits, targets, valid_vocab=151_936)
    torch.autograd.backward(values, [torch.ones(64)] * 2)
    hidden, weight = (torch.randn(n, 64, dtype=dtype, requires_grad=True) for n in (64, 1000))
    tokens = [torch.zeros(64) for _ in range(3)]
    per_token = {"rollout_logprobs": torch.zeros(64), "ref_logprobs": torch.zeros(64)}
    options = {"dual_clip": 3.0, "tis_cap": 2.0, "kl_coef": 0.1, "kl_kind": "k3"}
    rows = torch.arange(64), torch.arange(0)
    linear_policy_loss(
        hidden, weight, targets, *tokens, valid_vocab=997, rows=rows, entropy_coef=0.1, **per_token, **options
    )
    cu_seqlens = torch.tensor([0, 40, 64], dtype=torch.int32)
    for ratio, tis, mask in (
        ("geometric", "token", None),
        ("geometric", "sequence", "geometric"),
        ("token", "geometric", "token"),
        ("token", "token", "sequence"),
    ):
        levels = {"ratio_level": ratio, "tis_level": tis, "mask_level": mask, "cu_seqlens": cu_seqlens}
        policy_loss(*[torch.zeros(64)] * 4, entropy=torch.zeros(64), **levels, **per_token, **options)
    policy_loss(*[torch.zeros(64)] * 4, objective=CISPO)
    for estimator in (GRPO, DR_GRPO, RLOO):
        estimator(torch.zeros(64), targets, targets == 0)
    gae(torch.zeros(64), torch.zeros(64), targets == 0, cu_seqlens)
    for size in (64, 128, 5120, 8192):
        x = torch.randn(64, size, dtype=dtype, requires_grad=True)
        norm_and_gradient(x, torch.randn(64, size, dtype=dtype))
    for num_heads, num_groups, size in ((64, 8, 128), (40, 8, 128), (14, 2, 64)):
        heads = [torch.randn(16, num_heads + 2 * num_groups, size, dtype=dtype) for _ in range(2)]
        q_and_k = [x.split([num_heads, num_groups, num_groups], dim=1)[:2] for x in heads]
        for x, dy in zip(*q_and_k, strict=True):  # as in attention; then with a gradient of another layout
            norm_and_gradient(x.requires_grad_(), dy)
            norm_and_gradient(x, torch.randn(x.shape, dtype=dtype))


def norm_and_gradient(x, dy):
    rms_norm(x, torch.ones(x.shape[-1], dtype=x.dtype, requires_grad=True), 1e-6).backward(dy)


@pytest.mark.parametrize(
    ("architecture", "dtype"),
    [(80, torch.bfloat16), (90, torch.bfloat16), (100, torch.bfloat16), (90, torch.float32)],
)
def test_every_kernel_compiles_without_spills(architecture, dtype, launches, tmp_path):
    use_every_kernel(dtype)
    seen = set()
    for kernel, args, kwargs in launches:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("grid", "warmup")}
        compiled = compile_for(architecture, kernel, args, kwargs)
        num_registers, stack_bytes = registers_and_stack(compiled, tmp_path)
        assert num_registers <= 255 and stack_bytes == 0, (kernel.__name__, num_registers, stack_bytes)
        seen.add(kernel.__name__)
        sizes = ", ".join(f"{name}={value}" for name, value in kwargs.items())
        print(
            f"sm_{architecture} {kernel.__name__}: registers {num_registers}, spilled {stack_bytes} B ({sizes})"
        )
    assert seen == {
        "_row_stats_kernel", "_merge_kernel", "_d_logits_kernel", "_policy_loss_kernel", "_sequence_kernel",
        "_advantages_kernel", "_forward_kernel", "_backward_kernel", "_gae_kernel",
    }  # fmt: skip
