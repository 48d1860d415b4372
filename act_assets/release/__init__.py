"""What leaves the project: exports in others' formats, and checkpoints with a model card."""
