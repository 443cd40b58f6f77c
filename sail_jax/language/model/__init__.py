"""The transformer, its weights, adapters and log-probabilities."""
