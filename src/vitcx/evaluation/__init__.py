"""How faithful an explanation is to its model: measured on the engine that made it, no torch."""
