"""Device work the engines do not do: masked, noised batches."""
