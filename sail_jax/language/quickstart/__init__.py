"""From generated text to an aligned model and its frontier, with nothing to download."""
