"""Device work on a GPU: memory, streams, compilation, launches."""
