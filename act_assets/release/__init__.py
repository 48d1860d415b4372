"""What leaves the project: exports, checkpoints with a model card."""
