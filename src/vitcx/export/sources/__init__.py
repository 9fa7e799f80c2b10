"""Where a model comes from: its code, weights, class names and preprocessing."""
