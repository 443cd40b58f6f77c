"""The exact problem as a workload of the registry."""

from sail_jax.bandit import config
from sail_jax.kind import Kind, Study, late

BANDIT = Kind(
    name='bandit',
    trains='nothing: studies the objective on exact problems',
    settings=config.StudySettings,
    choose=config.model,
    programs=late('sail_jax.bandit.programs:programs'),
    study=Study(
        train=late('sail_jax.bandit.study:run'),
        report=late('sail_jax.bandit.study:print_table'),
    ),
)
