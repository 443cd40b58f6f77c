"""A reward that is learned from answers about pairs of segments."""
