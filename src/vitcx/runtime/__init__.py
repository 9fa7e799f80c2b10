"""Online: a bundle explains images. Never imports torch, timm or onnx."""
