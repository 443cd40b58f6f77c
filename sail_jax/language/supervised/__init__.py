"""What supervised stages have in common: one update, its task, its settings."""
