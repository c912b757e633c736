"""Chips with their published peaks, and the constants of the time model."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ralign.engine.runtime.errors import UserError
from ralign.engine.runtime.files import read_json_object

_MAX_SHOWN_CHARS = 80  # of a wrong name or value


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One GPU and its links. Peaks are published ones: dense bf16 FLOPs, one direction of a link."""

    name: str
    memory_bytes: int
    flops: float  # per second
    memory_bandwidth: float  # bytes/s
    node_link: float  # bytes/s to a GPU of the same node
    network_link: float  # bytes/s to a GPU of another node
    host_link: float  # bytes/s to pinned host memory


def _chip(
    name: str, memory_gb: float, tflops: float, tbs: float, node: float, net: float, host: float
) -> Chip:
    return Chip(
        name=name,
        memory_bytes=int(memory_gb * 1e9),
        flops=tflops * 1e12,
        memory_bandwidth=tbs * 1e12,
        node_link=node * 1e9,
        network_link=net * 1e9,
        host_link=host * 1e9,
    )


# Usable memory as the driver reports it, GB; NVLink; one 400 Gb/s (A100: 200 Gb/s) adapter per GPU; PCIe.
CHIPS = {
    "a100": _chip("a100", 85.0, 312, 2.04, 300, 25, 25),
    "h100": _chip("h100", 85.0, 989, 3.35, 450, 50, 55),
    "h200": _chip("h200", 150.7, 989, 4.8, 450, 50, 55),
    "b200": _chip("b200", 191.5, 2250, 7.7, 900, 50, 55),
}


def chip_of(text: str) -> Chip:
    """The chip of this name, or an H100 with this memory size in GB.

    Raises:
        UserError: the text is neither a name nor a size.
    """
    if text.lower() in CHIPS:
        return CHIPS[text.lower()]
    number = text.lower().removesuffix("gb")
    memory_gb = float(number) if re.fullmatch(r"[0-9]{1,5}(\.[0-9]{1,9})?", number) else 0.0
    if memory_gb < 1:
        raise UserError(
            f"--gpu must be one of {', '.join(CHIPS)}, or a memory size in GB, got {text[:_MAX_SHOWN_CHARS]!r}"
        )
    return replace(CHIPS["h100"], name=f"{memory_gb:g}GB", memory_bytes=int(memory_gb * 1e9))


@dataclass(frozen=True, kw_only=True)
class Constants:
    """Efficiencies that multiply peaks, latencies, and mean lengths.

    The defaults are assumptions. `--constants FILE.json` replaces them by measured values.
    """

    train_efficiency: float = 0.40  # of peak FLOPs, forward and backward of packed micro-batches
    prefill_efficiency: float = 0.50  # of peak FLOPs, forward only
    decode_bandwidth: float = 0.60  # of memory bandwidth, while decoding
    link_efficiency: float = 0.75  # of a link's peak, in collectives and copies
    exposed_communication: float = 0.7  # share of tensor-parallel communication that no computation hides
    decode_overhead_s: float = 0.003  # of a decode step beside reading memory: scheduling, sampling
    collective_latency_s: float = 15e-6  # of one all-reduce within an engine
    mean_prompt: float = 0.5  # of max_prompt_tokens
    mean_response: float = 0.5  # of max_new_tokens
    mean_prompt_tokens: float = 0.0  # replaces mean_prompt if not 0
    mean_new_tokens: float = 0.0  # replaces mean_response if not 0
    judge_s: float = 0.0  # a step's judging that does not overlap generation
    gpus_per_node: int = 8


# Least and greatest value. An efficiency is that of an H100's peaks for an unknown GPU, which may be faster.
_EFFICIENCY, _LENGTH, _SECONDS, _TOKENS = (1e-6, 100), (1e-6, 1), (0, 1e6), (0, 1e9)
_RANGES = {
    "train_efficiency": _EFFICIENCY,
    "prefill_efficiency": _EFFICIENCY,
    "decode_bandwidth": _EFFICIENCY,
    "link_efficiency": _EFFICIENCY,
    "exposed_communication": (0, 1),
    "decode_overhead_s": _SECONDS,
    "collective_latency_s": _SECONDS,
    "mean_prompt": _LENGTH,
    "mean_response": _LENGTH,
    "mean_prompt_tokens": _TOKENS,
    "mean_new_tokens": _TOKENS,
    "judge_s": _SECONDS,
    "gpus_per_node": (1, 1_000_000),
}


def read_constants(path: str | Path | None) -> Constants:
    """The defaults, overridden by a file with a JSON object of the same names.

    Raises:
        UserError: the file cannot be read, or has a name or a value that is not valid.
    """
    if path is None:
        return Constants()
    values = read_json_object(path)
    for name, value in values.items():
        given = f"--constants {path}: {name[:_MAX_SHOWN_CHARS]}={repr(value)[:_MAX_SHOWN_CHARS]}"
        if name not in _RANGES:
            raise UserError(f"{given}; expected numbers named {', '.join(_RANGES)}")
        least, most = _RANGES[name]
        kinds = int if name == "gpus_per_node" else int | float
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            kind = "a whole number" if name == "gpus_per_node" else "a number"
            raise UserError(f"{given}; expected {kind} from {least:g} to {most:g}")
    return replace(Constants(), **values)
