"""All owed kernel figures of one GPU in one run: right results first, then times, memory and a verdict each.

    python benchmarks/gpu_check.py [--out FILE.json] [--checks-only]

Needs a CUDA device, torch and triton; nothing installed, no network; under eight minutes. Prints one table and
writes JSON. Exit status 1 if a result is wrong; a missed target is shown, not an error.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path

import torch
from source_tree import ROOT, make_importable

make_importable()

import roofline  # noqa: E402
from kernel_cases import OBJECTIVE, loss_inputs  # noqa: E402
from ralign.kernels.advantages import DR_GRPO, GRPO, RLOO  # noqa: E402
from ralign.kernels.linear_logprob import linear_logprob  # noqa: E402
from ralign.kernels.linear_policy_loss import linear_policy_loss  # noqa: E402
from ralign.kernels.logprob import IGNORE, logprob  # noqa: E402
from ralign.kernels.policy_loss import policy_loss  # noqa: E402
from ralign.kernels.rms_norm import rms_norm  # noqa: E402


def values_and_gradients(op, leaves):
    """All tensors an op gives (the first two, at most) and the gradients of its leaves, in float64."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = op(*leaves)
    out = [x for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, torch.Tensor)][:2]
    learned = [x for x in out if x.requires_grad]
    upstream = [
        torch.linspace(-1, 2, x.numel(), device=x.device, dtype=x.dtype).view(x.shape) for x in learned
    ]
    return [x.double() for x in (*out, *torch.autograd.grad(learned, leaves, upstream))]


def check(name, op, leaves, dtype) -> dict:
    """Error against float64 on plain torch, beside the error of plain torch in the same dtype."""
    leaves = [x.to(dtype) for x in leaves]
    exact = values_and_gradients(lambda *x: op("torch", *x), [x.double() for x in leaves])
    plain = values_and_gradients(lambda *x: op("torch", *x), leaves)
    ours = values_and_gradients(lambda *x: op("triton", *x), leaves)
    ratio = 0.0
    for a, b, c in zip(exact, plain, ours, strict=True):
        floor = 4 * torch.finfo(dtype).eps * a.abs().amax().clamp(min=1)
        ratio = max(
            ratio, ((c - a).abs().amax() / (2 * (b - a).abs().amax() + floor)).nan_to_num(torch.inf).item()
        )
    return {"name": f"{name} {str(dtype)[6:]}", "error_over_allowed": ratio, "right": ratio <= 1}


def correctness() -> list[dict]:
    """Odd shapes, masked rows, padded vocabulary, offsets: Triton and cuBLAS against float64."""
    torch.manual_seed(0)
    results = []
    for n, v, valid, offset in ((1, 7, 7, 0.0), (33, 5003, 4999, 200.0), (65, 151_936, 151_669, -20.0)):
        logits = torch.randn(n, v, device="cuda") * 3 + offset
        targets = torch.randint(0, valid, (n,), device="cuda")
        targets[n // 2 :: 4] = IGNORE

        def op(implementation, x, targets=targets, valid=valid):
            return logprob(x, targets, valid_vocab=valid, temperature=0.7, implementation=implementation)

        results += [check(f"logprob V={v}", op, [logits], dtype) for dtype in (torch.float32, torch.bfloat16)]
    n, v, h = 300, 5003, 128
    hidden, weight = torch.randn(n, h, device="cuda"), torch.randn(v, h, device="cuda") / 4
    targets = torch.randint(0, 4999, (n,), device="cuda")
    (_, *tokens), per_token = loss_inputs(n, "cuda")

    def head(implementation, hidden, weight):
        options = {
            "valid_vocab": 4999,
            "temperature": 0.8,
            "chunk_tokens": 64,
            "implementation": implementation,
        }
        return linear_logprob(hidden, weight, targets, **options)

    def head_and_loss(implementation, hidden, weight):
        options = {"valid_vocab": 4999, "chunk_tokens": 64, "implementation": implementation, **OBJECTIVE}
        return linear_policy_loss(hidden, weight, targets, *tokens, **per_token, **options)[0]

    for dtype in (torch.float32, torch.bfloat16):
        results += [check("linear_logprob", head, [hidden, weight], dtype)]
        results += [check("linear_policy_loss", head_and_loss, [hidden, weight], dtype)]
    for num_tokens in (1, 8192, 20_001):
        (first, *rest), per_token = loss_inputs(num_tokens, "cuda")
        for sequences in (
            None,
            torch.tensor([0, num_tokens // 3, num_tokens], device="cuda", dtype=torch.int32),
        ):

            def loss(implementation, x, rest=rest, per_token=per_token, sequences=sequences):
                options = {"cu_seqlens": sequences, "implementation": implementation, **OBJECTIVE}
                if sequences is not None:
                    options |= dict.fromkeys(("ratio_level", "tis_level", "mask_level"), "geometric")
                return policy_loss(x, *rest, **per_token, **options)[0]

            name = f"policy_loss N={num_tokens}{'' if sequences is None else ' sequences'}"
            results.append(check(name, loss, [first], torch.float32))
    for size in (5, 128, 5120, 8192):

        def norm(implementation, x, weight):
            return rms_norm(x, weight, 1e-6, implementation=implementation)

        leaves = [torch.randn(77, size, device="cuda"), torch.randn(size, device="cuda")]
        results += [
            check(f"rms_norm H={size}", norm, leaves, dtype) for dtype in (torch.float32, torch.bfloat16)
        ]
    rewards = torch.randn(4097, device="cuda").round(decimals=1)
    groups, valid = torch.randint(-9, 900, (4097,), device="cuda"), torch.rand(4097, device="cuda") > 0.1
    for estimator in (GRPO, DR_GRPO, RLOO):
        a, b = (estimator(rewards, groups, valid, implementation=x) for x in ("triton", "torch"))
        error = (a - b).abs().amax().item()
        results.append(
            {
                "name": f"advantages {estimator.name}",
                "error_over_allowed": error / 1e-5,
                "right": error <= 1e-5,
            }
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=None, help="where the JSON goes (default: benchmarks/results/)"
    )
    parser.add_argument("--checks-only", action="store_true", help="no times")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_check.py needs a CUDA device, found none")
    device, date = torch.cuda.get_device_name(), datetime.date.today().isoformat()
    checks = correctness()
    for result in checks:
        if not result["right"]:
            print(f"WRONG: {result['name']}: error {result['error_over_allowed']:.1f} times what is allowed")
    print(f"{sum(r['right'] for r in checks)} of {len(checks)} results right on {device}")
    report = {"device": device, "date": date, "torch": torch.__version__, "checks": checks}
    if not args.checks_only:
        report |= roofline.measure(everyone=True)
    out = args.out or ROOT / "benchmarks" / "results" / f"{device.replace(' ', '-')}-{date}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    print(f"written to {out}")
    sys.exit(not all(result["right"] for result in checks))


if __name__ == "__main__":
    main()
