"""Proof: how faithful and how fast, against every method of the paper and against PyTorch."""
