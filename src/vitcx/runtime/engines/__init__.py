"""What runs a bundle: one session contract, several engines."""
