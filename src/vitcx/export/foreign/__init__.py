"""People's own ONNX files become bundles, without PyTorch"""
