"""Reduced precisions: fp16, bf16, int8, and what they cost."""
