"""ACT (Action-Based Contrastive Self-Training, ICLR 2025) as software-defined assets."""

__version__ = "0.2.0"
