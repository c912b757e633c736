"""Answers that were cut off at the longest length: what they earn.

    invalid   algo.invalid_reward, as an answer without a verdict
    mask      nothing: no place in groups, losses and denominators
    penalty   as they read, less a soft penalty for overlong answers (DAPO, arXiv:2503.14476)
    keep      as they read

With L the longest length and b = algo.overlong_share · L, the penalty of an answer of n tokens is 0 up to L - b, rises
linearly to 1 at L, and is 1 for an answer that was cut off.
"""

from collections.abc import Sequence

import numpy as np
from ralign.engine.config.algo import AlgoConfig


def overlong_penalty(
    lengths: np.ndarray, is_cut: np.ndarray, max_new_tokens: int, overlong_share: float
) -> np.ndarray:
    """[num_samples] float64 from 0 to 1. lengths: [num_samples] tokens. is_cut: [num_samples] bool."""
    buffer = overlong_share * max_new_tokens
    over = (lengths - (max_new_tokens - buffer)) / max(buffer, 1e-9)
    return np.where(is_cut, 1.0, np.clip(over, 0.0, 1.0))


def apply_truncation(
    values: np.ndarray,
    valid: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    is_cut: Sequence[bool],
    algo: AlgoConfig,
    *,
    default: str,
    max_new_tokens: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Values and validity of a batch after `algo.truncated`.

    values: [num_samples] or [num_samples, num_parts] float32. valid: [num_samples] bool. default: for a setting of
        None.
    """
    kind, cut = algo.truncated or default, np.asarray(is_cut, dtype=bool)
    columns = (slice(None),) + (None,) * (values.ndim - 1)
    num_parts = values.shape[1] if values.ndim > 1 else 1
    if kind == "invalid":
        return np.where(cut[columns], algo.invalid_reward / num_parts, values).astype(np.float32), valid | cut
    if kind == "mask":
        return np.where(cut[columns], 0, values), valid & ~cut
    if kind == "penalty":
        penalty = overlong_penalty(np.asarray(lengths), cut, max_new_tokens, algo.overlong_share)
        penalty = np.where(valid, penalty, 0) / num_parts
        return (values - penalty[columns]).astype(np.float32), valid
    assert kind == "keep", kind
    return values, valid
