"""ViT-CX explanations of Vision Transformers, without PyTorch at run time."""
