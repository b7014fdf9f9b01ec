"""Runs: their configuration, the training loop, studies, files and checkpoints."""
