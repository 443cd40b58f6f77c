"""SAIL-RevKL: online alignment of policies from preferences, in JAX."""
