"""ralign.engine: Megatron-core trains, vLLM generates in the same processes, on one copy of the weights."""
