"""Engines on a CPU: ONNX Runtime and OpenVINO."""
