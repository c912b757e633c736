"""Closed formulas for the memory of one rank in each part of a step, in bytes.

Symbols (per rank): t, p, c, d: tensor-, pipeline-, context-, data-parallel sizes. P: parameters, padded as in the
flat buffers of Megatron. n = token_budget / c tokens of a micro-batch; n' = n / t with sequence parallelism, else n.
h, f: hidden and MLP width; N, G: query heads and groups over t; D: head size; V: padded vocabulary. b: bytes of a
weight (2 for bf16, 4 for fp32).

    weights      b P                 gradients   4 P (summed in fp32, complete on every data-parallel rank)
    optimizer    12 P / (d c) in bf16 (master weights, two moments), 8 P / (d c) in fp32 (masters are the weights)
    activations  b (4 n' h + n D ((N + 2G) + (N + G) + N) + 5 n f / t) per layer; with recomputation n' h per
                 layer and the above for one layer at a time
    workspace    the larger of: a layer's pass (the gradients 2 n f / t + 2 n' h; with recomputation the layer's
                 activations); the logprobs (a chunk of logits of 320 MiB and its gradient, the head's fp32 gradient,
                 hidden states in fp32)
    KV cache     2 b D G / t_generate per token and layer
"""

import math

from ralign.engine.planner.job import Job


def num_held(job: Job, stage: int) -> int:
    """P: elements of Megatron's flat parameter buffer on a rank of this stage, padding included.

    Parameters are laid out from the last to the first, each start aligned to 64 elements. The end of a bucket is padded
    to a multiple of 128 and of the number of ranks that share its optimizer state. All parameters form one bucket,
    since gradients are reduced together; only a tied embedding on two stages has a separate one.
    """
    shape, ranks = job.shape, job.data * job.context
    embedding, layers, head = shape.parts(tensor=job.tensor, pipeline=job.pipeline, stage=stage)
    sizes = [*embedding, *layers, *head]
    tied_over_stages = shape.tie_embeddings and job.pipeline > 1
    alone = ({0} if embedding else set()) | ({len(sizes) - 1} if len(head) == 2 else set())
    alone = alone if tied_over_stages else set()
    multiple = math.lcm(ranks, 128)
    end = bucket_start = 0
    for index in reversed(range(len(sizes))):
        end = _pad(end, 64)
        if index in alone and end > bucket_start:
            end = bucket_start = _pad(end, multiple)
        end += sizes[index]
        if index in alone:
            end = bucket_start = _pad(end, multiple)
    return _pad(end, multiple)


def _pad(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def layer_activation_bytes(job: Job, *, on_gpu: bool = True) -> int:
    """Activations that one layer saves for its backward pass, for one micro-batch.

    Norm inputs and outputs; fused QKV, rotated q and k (on CPU gathered q, k, v instead), attention's output
    (on CPU also its padded form); gate and up, the up half once more, silu, and their product.
    """
    shape, n = job.shape, job.micro_batch_tokens
    split = n // job.tensor if job.sequence else n
    heads, groups = shape.num_attention_heads // job.tensor, max(shape.num_query_groups // job.tensor, 1)
    width = shape.head_dim
    # Context parallelism: the layer attends over all ranks' keys and values.
    keys = groups * job.context
    if on_gpu:
        attention = (heads + 2 * groups) + (heads + keys) + heads + (keys if job.context > 1 else 0)
    else:
        attention = (heads + 2 * groups) + (heads + 2 * keys) + 2 * heads
    mlp = 5 * shape.ffn_hidden_size // job.tensor
    return job.weight_bytes * (4 * split * shape.hidden_size + n * (attention * width + mlp)) + 4 * n * heads


def activation_bytes(job: Job, stage: int, *, on_gpu: bool = True) -> int:
    """Activations saved by autograd for all micro-batches that a stage has in flight (`learn`)."""
    shape = job.shape
    in_flight = job.pipeline - stage  # one forward, one backward: earlier stages run ahead
    hidden = _hidden_bytes(job)
    layer = hidden if job.recompute else layer_activation_bytes(job, on_gpu=on_gpu)
    top = 2 * hidden if stage == job.pipeline - 1 else 0  # the final norm's input and output
    return in_flight * shape.num_layers // job.pipeline * layer + top


def workspace_bytes(job: Job, stage: int, *, backward: bool, on_gpu: bool = True) -> int:
    """Largest temporary memory: of one layer's pass, or of the logprobs."""
    shape, n, hidden = job.shape, job.micro_batch_tokens, _hidden_bytes(job)
    gathered = job.weight_bytes * n * shape.hidden_size if job.sequence else 0  # one all-gather at a time
    mlp = job.weight_bytes * n * shape.ffn_hidden_size // job.tensor
    if not backward:
        layer = 5 * mlp + 3 * hidden
    else:
        layer = 2 * mlp + 2 * hidden  # gradients of gate and up, and of the residual stream
        if job.recompute:
            layer += layer_activation_bytes(job, on_gpu=on_gpu) - hidden
    head = logprob_bytes(job, backward=backward, on_gpu=on_gpu) if stage == job.pipeline - 1 else 0
    return max(layer + gathered, head)


def _hidden_bytes(job: Job) -> int:
    """The residual stream of one micro-batch on one rank."""
    tokens = job.micro_batch_tokens // job.tensor if job.sequence else job.micro_batch_tokens
    return job.weight_bytes * tokens * job.shape.hidden_size


def logprob_bytes(job: Job, *, backward: bool, on_gpu: bool = True) -> int:
    """Workspace of linear_logprob on the last stage: chunks of logits, and in backward the head's gradient."""
    shape, n = job.shape, job.micro_batch_tokens
    if shape.is_critic:  # the head and the hidden states in fp32, and their gradients
        wide = 4 * n * shape.hidden_size if job.dtype == "bf16" else 0
        return wide + backward * (wide + _hidden_bytes(job))
    columns = shape.padded_vocab_size // job.tensor
    rows = (320 if on_gpu else 128) * 2**20 // (4 * columns)  # as its auto_chunk_tokens
    share = job.max_new_tokens / (job.max_prompt_tokens + job.max_new_tokens)
    chunk = min(max(rows // 64 * 64, 64), 1024, max(int(n * share), 1))
    # fp32 logits and, on a GPU, their gradient in the weights' dtype; on a CPU logits, probabilities, gradient.
    logits = (4 + job.weight_bytes if on_gpu else 12) * chunk * columns + 2 * _hidden_bytes(job)
    gathered = job.weight_bytes * n * shape.hidden_size if job.sequence else 0
    if not backward:
        return logits + gathered
    head = (4 + (job.weight_bytes if job.dtype == "bf16" else 0)) * columns * shape.hidden_size
    wide = 4 if job.tensor > 1 else job.weight_bytes
    return logits + gathered + head + (wide + job.weight_bytes) * n * shape.hidden_size


def engine_workspace_bytes(job: Job) -> int:
    """vLLM's activations of one pass and the fp32 logits of all sequences (gathered over the vocabulary)."""
    shape = job.shape
    tokens = max(job.max_num_batched_tokens, job.max_num_seqs)
    mlp = 3 * shape.ffn_hidden_size // job.generate_tensor
    return tokens * (mlp + 4 * shape.hidden_size) * job.weight_bytes + 3 * 4 * (
        job.max_num_seqs * shape.padded_vocab_size
    )


def held_bytes(job: Job, held: int) -> tuple[int, int, int]:
    """(weights, gradients, optimizer state) of a model with `held` parameters on a rank."""
    optimizer = (12 if job.dtype == "bf16" else 8) * (held // (job.data * job.context))
    return job.weight_bytes * held, 4 * held, optimizer


def pass_bytes(job: Job, stage: int, on_gpu: bool) -> dict[str, int]:
    return {
        "activations": activation_bytes(job, stage, on_gpu=on_gpu),
        "workspace": workspace_bytes(job, stage, backward=True, on_gpu=on_gpu),
    }


def step_bytes(job: Job, held: int, on_gpu: bool) -> int:
    """CUDA: the root of the second moment, for all parameters at once. CPU: gloo's copy of the gathered weights."""
    return 4 * (held // (job.data * job.context)) if on_gpu else job.weight_bytes * held


def checkpoint_copy_bytes(job: Job, stage: int, on_gpu: bool) -> int:
    """Host memory of a checkpoint's copy: weights and two moments in fp32, of this rank's share.

    In pinned memory, torch rounds each tensor up to a power of two. The copy has one tensor per parameter.
    """
    ranks = job.data * job.context
    if not on_gpu:
        return 12 * (num_held(job, stage) // ranks)
    embedding, layers, head = job.shape.parts(tensor=job.tensor, pipeline=job.pipeline, stage=stage)
    return 3 * sum(1 << (4 * size - 1).bit_length() for size in (*embedding, *layers, *head)) // ranks
