"""The algorithm: pure functions that touch neither disk nor host."""
