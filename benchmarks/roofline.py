"""Every kernel of ralign.kernels against the roofs of this GPU: achieved bytes/s and FLOP/s, beside those of a measured
copy and a measured matrix product.

    python benchmarks/roofline.py [--out FILE.json] [--all]

Needs a CUDA device, torch and triton; nothing installed, no network. --all times plain torch, torch.compile and
Liger-Kernel (where installed), too. A missed target is shown, not an error.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from source_tree import make_importable

make_importable()

from kernel_cases import GPU, Case, linear_policy_loss_case, make_cases  # noqa: E402

NUM_ROUNDS = 10
EXTRA_MEMORY_GB = 0.6  # target of linear_policy_loss


def event_ms(call: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def time_ms(call: Callable[[], object], *, as_graph: bool) -> float:
    """Median of single calls; of calls replayed from a CUDA graph where the host would be what is timed."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    if not as_graph:
        return statistics.median(event_ms(call) for _ in range(NUM_ROUNDS))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            call()
    return statistics.median(event_ms(graph.replay) for _ in range(NUM_ROUNDS)) / 20


def ceilings() -> tuple[float, float]:
    """Bytes a second of a large copy (read and written), operations a second of a bf16 product of random data."""
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    copy_ms = time_ms(lambda: target.copy_(source), as_graph=False)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_ms = time_ms(lambda: a @ b, as_graph=False)
    return 2 * source.nbytes / copy_ms * 1e3, 2 * 8192**3 / product_ms * 1e3


def row_of(case: Case, name: str, ms: float, copy_rate: float, product_rate: float, on_h200: bool) -> dict:
    """One implementation's time as rates, and as a share of the time that the roofs allow.

    Targets in milliseconds are an H200's; a share of the roof is a target on every chip.
    """
    seconds = ms / 1e3
    ours = name == "ralign"
    return {
        "case": case.name,
        "shape": case.shape,
        "implementation": name,
        "ms": ms,
        "target_ms": case.target_ms if ours and on_h200 else None,
        "bytes_per_s": case.num_bytes / seconds,
        "flops_per_s": case.num_flops / seconds,
        "share_of_ceiling": (case.num_bytes / copy_rate + case.num_flops / product_rate) / seconds,
        "target_share": case.target_share if ours else None,
    }


def misses_target(row: dict) -> bool | None:
    """None: it has no target here."""
    if row["target_ms"] is not None:
        return not row["ms"] <= row["target_ms"]
    if row["target_share"] is not None:
        return not row["share_of_ceiling"] >= row["target_share"]
    return None


def line_of(row: dict) -> str:
    rate = (
        f"{row['bytes_per_s'] / 1e12:6.2f} TB/s"
        if row["bytes_per_s"]
        else f"{row['flops_per_s'] / 1e12:4.0f} TFLOP/s"
    )
    missed, target = misses_target(row), ""
    if missed is not None:
        target = f"{row['target_share']:.0%}" if row["target_ms"] is None else f"{row['target_ms']:g} ms"
    verdict = {None: "", True: f"{target} MISSED", False: f"{target} met"}[missed]
    label = f"{row['case']}, {row['shape']}: {row['implementation']}"
    return f"{label:<78}{row['ms']:9.3f}  {rate:>12}  {row['share_of_ceiling']:10.0%}  {verdict}"


def times(*, everyone: bool, copy_rate: float, product_rate: float) -> list[dict]:
    """A row for each case and implementation, printed as it is measured; `everyone`: not ours alone."""
    print(f"{'case':<78}{'ms':>9}  {'rate':>12}  {'of ceiling':>10}  target")
    rows, on_h200 = [], "H200" in torch.cuda.get_device_name()
    for case in make_cases("cuda", GPU):
        for name, call in case.run.items():
            if name != "ralign" and not everyone:
                continue
            # Plain torch's loop over groups and its boolean tables read back sizes: no graph holds them.
            as_graph = case.name in ("policy_loss, forward", "group_advantages") and name == "ralign"
            ms = time_ms(call, as_graph=as_graph)
            rows.append(row_of(case, name, ms, copy_rate, product_rate, on_h200))
            print(line_of(rows[-1]), flush=True)
        del case, call
    return rows


def extra_memory_gb() -> float:
    """Most memory that linear_policy_loss holds beyond inputs, gradients and the fp32 sum of d_weight."""
    case = linear_policy_loss_case("cuda", GPU)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    case.run["ralign"]()
    torch.cuda.synchronize()
    outputs = GPU.vocab * GPU.hidden * (4 + 2) + GPU.num_tokens * GPU.hidden * 2
    return (torch.cuda.max_memory_allocated() - before - outputs) / 1e9


def measure(*, everyone: bool) -> dict:
    """Ceilings, times and the extra memory of linear_policy_loss; printed as they come."""
    copy_rate, product_rate = ceilings()
    print(f"copy {copy_rate / 1e12:.2f} TB/s, bf16 product {product_rate / 1e12:.0f} TFLOP/s\n")
    rows = times(everyone=everyone, copy_rate=copy_rate, product_rate=product_rate)
    memory_gb = extra_memory_gb()
    verdict = "met" if memory_gb <= EXTRA_MEMORY_GB else "MISSED"
    print(f"linear_policy_loss, extra memory {memory_gb:.2f} GB {verdict} ({EXTRA_MEMORY_GB} GB)")
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy_bytes_per_s": copy_rate,
        "matmul_flops_per_s": product_rate,
        "times": rows,
        "linear_policy_loss_extra_memory_gb": memory_gb,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=None, help="where the figures go as JSON")
    parser.add_argument("--all", action="store_true", help="time the other implementations, too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("roofline.py needs a CUDA device, found none")
    report = measure(everyone=args.all)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
