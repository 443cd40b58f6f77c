"""The arms of `benchmarks.convergence`: what each is, what it is told, what it may choose from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from sail_jax.core.pair_losses import PAIR_LOSSES, MeanReward

PAIR_LOSSES['mean_reward'] = MeanReward()

BASE = {
    'env': {'backend': 'spring'},
    'rollout': {'contexts': 32, 'group_size': 8, 'segment_length': 32},
    'value': {'terminal': 'learned'},
    'optimizer': {'epochs': 4, 'minibatches': 4},
    'logging': {'tensorboard': False},
}
"""What arms but PPO share, if they do not say otherwise."""


class Axis(NamedTuple):
    """A setting that an arm chooses."""

    ladder: tuple[float, ...]
    """All values that may be tried, ascending."""
    first: tuple[float, ...]
    """Those of the first grid, neighbours on the ladder."""
    untuned: float
    """Where nothing is tuned."""


THIRDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
LEARNING_RATE = Axis(RATES, (1e-4, 3e-4, 1e-3, 3e-3), 1e-3)
FOUR = Axis(THIRDS, (0.03, 0.1, 0.3, 1.0), 0.1)
TWO = Axis(THIRDS, (0.1, 0.3), 0.1)
LARGE = Axis(THIRDS, (0.3, 1.0), 0.3)
NONE_OR_SOME = Axis((0.0, 0.3, 1.0), (0.0, 0.3), 0.3)

FIRST_TRIALS = 16
"""Settings of every arm's first grid."""
MAX_TRIALS = 24
"""Settings that an arm may try in all, where the best of its grid has neighbours to try."""

FALLS = {
    'coefficient': ('divergence', 'coefficient_updates'),
    'response_grad': ('objective', 'response_grad_updates'),
}
"""What can fall to 0 within a run, and the setting that says in how many updates."""

COMPARISONS = 'comparisons from one state'
VALUE = "labeller's value"
TOLD = {
    COMPARISONS: 'which of two segments from the same simulator state has the higher true return',
    'returns from one state': 'the true returns of segments from the same simulator state',
    VALUE: 'returns go on after the segment, by a value function of the labeller that is fitted on '
    'the true reward of every step',
    'rewards': 'the true reward of every step',
}
"""What reaches an arm of the true reward, in the words of the tables."""


class Arm(NamedTuple):
    """A method, and what it may choose from."""

    settings: dict[str, Any]
    axes: dict[str, Axis]
    told: str = f'{COMPARISONS}, {VALUE}'
    """What reaches it of the true reward; see `TOLD`."""
    falling: Mapping[str, float] = MappingProxyType({})
    """Of `FALLS`, what falls linearly to 0, and by which share of a run, be it of tuning or
    reported."""


def online(response_grad: float, coefficient: float = 0.0, **sections: Any) -> dict[str, Any]:
    """SAIL-DPR's settings: online DPO without the first, SAIL without the second."""
    divergence = {'coefficient': coefficient, **sections.pop('divergence', {})}
    return {
        'objective': {'response_grad': response_grad},
        'divergence': divergence,
        **sections,
    }


REFRESH = {'reference': {'refresh_env_steps': 25_000}}
TO_REF = {'divergence': {'direction': 'policy_to_ref'}}
LONG = {
    'rollout': {'contexts': 8, 'group_size': 8, 'segment_length': 128},
    'value': {'terminal': 'none'},
}
"""Segments that need no value after them, a quarter of the labels for the same env steps."""
OF_DPO = {'learning_rate': LEARNING_RATE, 'beta': FOUR}
OF_SAIL = {'learning_rate': LEARNING_RATE, 'beta': TWO, 'response_grad': LARGE}
OF_REVKL = {'learning_rate': LEARNING_RATE, 'beta': TWO, 'coefficient': TWO}
OF_FALLING = {
    'learning_rate': LEARNING_RATE,
    'response_grad': NONE_OR_SOME,
    'coefficient': TWO,
}

ARMS = {
    'offline DPO': Arm(
        {'objective': {'mixture': {'dpr': 0}}, 'divergence': {'coefficient': 0}}, OF_DPO
    ),
    'online DPO': Arm(online(0), OF_DPO),
    'SAIL': Arm(online(0.3), OF_SAIL),
    'SAIL-RevKL, ref to policy': Arm(online(0.3, 0.1), OF_REVKL),
    'SAIL-RevKL, policy to ref': Arm(online(0.3, 0.1, **TO_REF), OF_REVKL),
    'online DPO, refreshed': Arm(online(0, **REFRESH), OF_DPO),
    'SAIL, refreshed': Arm(online(0.3, **REFRESH), OF_SAIL),
    'SAIL-RevKL, ref to policy, refreshed': Arm(online(0.3, 0.1, **REFRESH), OF_REVKL),
    'SAIL-RevKL, policy to ref, refreshed': Arm(online(0.3, 0.1, **TO_REF, **REFRESH), OF_REVKL),
    'SAIL-RevKL, ref to policy, refreshed, falling': Arm(
        online(0.3, 0.1, **REFRESH), OF_FALLING, falling={'coefficient': 0.5}
    ),
    'SAIL-RevKL, refreshed, no value': Arm(
        online(0.3, 0.1, **REFRESH, **LONG), OF_REVKL, COMPARISONS
    ),
    'REINFORCE on the returns': Arm(
        {'objective': {'loss': 'mean_reward'}, 'divergence': {'coefficient': 0}},
        {'learning_rate': LEARNING_RATE, 'response_grad': FOUR},
        f'returns from one state, {VALUE}',
    ),
}
"""By their names. The gradient of REINFORCE is weighed by `response_grad` against the value's."""

PPO = 'PPO on the reward'
OF_PPO = Arm(
    {},
    {
        'learning_rate': LEARNING_RATE,
        'num_updates_per_batch': Axis((1, 2, 4, 8, 16, 32), (4, 8), 4),
        'discounting': Axis((0.9, 0.95, 0.97, 0.99, 0.995, 0.998), (0.97, 0.99), 0.97),
    },
    'rewards',
)
