ENVS = ('hopper', 'walker2d', 'halfcheetah', 'ant', 'humanoid')
"""Of the comparisons of control."""
