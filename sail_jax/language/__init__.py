"""Language: SAIL-RevKL on Flax transformers."""
