"""Slow, obvious versions of every operation, in float64, written from the paper.

Nothing here is clever and nothing here is imported by the product.
"""
