"""From a PyTorch module to a checked ONNX graph."""
