"""Device work as NumPy does it: the twin that the kernels are tested against."""
