"""The supervised stage: a reference has to come from somewhere."""
