"""The host's loop, which knows no workload."""
