"""Offline: a model becomes a bundle. May import torch, timm and onnx."""
