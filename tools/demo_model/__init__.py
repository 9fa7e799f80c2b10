"""The training of the embedded model. Not in the wheel."""
