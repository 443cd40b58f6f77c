"""What a run needs of a target, by the target's own compiler and without the target."""
