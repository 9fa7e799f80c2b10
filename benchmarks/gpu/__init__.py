"""What is run on a machine with a GPU: README.md tells in which order."""
