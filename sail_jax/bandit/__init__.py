"""The exact problem: a log-linear policy over enumerable responses."""
