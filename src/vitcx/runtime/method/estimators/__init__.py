"""How the impact of a mask is measured: which rows are scored, and what their scores mean."""
