"""The weight of a response token in the loss: mask and normaliser in one number.

    token      1 / (valid response tokens of the global batch)            every token counts alike
    sequence   1 / (valid sequences of the global batch · its own tokens)    every sequence counts alike

Shapes: S samples.
"""

import torch

NORMALISATIONS = ("token", "sequence")


def token_weights(
    num_response_tokens: torch.Tensor,
    valid: torch.Tensor,
    *,
    kind: str,
    total: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """The weight of each response token of a sample: the loss's mask and normaliser in one number.

    num_response_tokens: [S] int64. valid: [S] bool; False (a failed judge): weight 0.
    kind: "token": 1 / total, with total the valid response tokens of the global batch: tokens count alike.
        "sequence": 1 / (total · num_response_tokens), with total the valid sequences of the global batch:
        sequences count alike.
    total: the denominator over the global batch (all micro-batches and ranks); None: these samples are the
        global batch. Dr. GRPO's constant is kind="token" with total = sequences × longest response allowed.

    Returns [S] fp32, to be copied to the sample's response tokens (0 on all others). A total of 0 gives 0.
    """
    if kind not in NORMALISATIONS:
        raise ValueError(f"kind must be one of {', '.join(NORMALISATIONS)}, got {kind!r}")
    lens = torch.where(valid, num_response_tokens, 0)
    if total is None:
        total = lens.sum() if kind == "token" else (lens > 0).sum()
    denominator = total * (torch.ones_like(lens) if kind == "token" else lens)
    return torch.where(lens > 0, 1 / denominator.double(), 0).masked_fill(denominator == 0, 0).float()
