"""Training reward models: a supervised stage on compared responses."""
