"""Continuous control on Brax."""
