"""Checkpoints: where they are, how they are read, converted and packed."""
