"""Soft actor-critic: the off-policy learner of the paper's control experiments."""
