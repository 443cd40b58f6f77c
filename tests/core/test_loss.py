"""The loss of a batch against the same written out: each setting stands where it should."""

import functools
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sail_jax import config
from sail_jax.core import loss
from sail_jax.core.types import (
    Batch,
    Compared,
    Hyper,
    Minibatch,
    Policies,
    Policy,
    Preferences,
    Route,
    Workload,
)

# One row of each member of the family; groups of two, and a lane of the reference.
B, K, L, T = 4, 2, 3, 3
ROUTE = Route(np.array([True, True, False, False]), np.array([False, True, True, False]))
RNG = np.random.default_rng(0)
LENGTHS = np.array([[3, 1, 2], [2, 3, 3], [1, 2, 1], [3, 2, 2]])
MASK = (np.arange(T) < LENGTHS[..., None]).astype(float)
# At masked steps stands what must not matter.
LOGP = np.where(MASK > 0, -RNG.exponential(size=(B, L, T)), 3.0)
REFERENCE = np.where(MASK > 0, -RNG.exponential(size=(B, L, T)), -4.0)
BEHAVIOUR = np.where(MASK > 0, LOGP + RNG.normal(0, 0.4, (B, L, T)), 5.0)
PROB = RNG.uniform(0.1, 0.9, B)
AUXILIARY = 0.7

BASE = {
    'beta': 0.6,
    'response_grad': 0.9,
    'label_grad': 0.4,
    'coefficient': 0.3,
    'direction': 'ref_to_policy',
    'estimator': 'exact',
    'states': 'policy',
    'reduction': 'sum',
    'visitation_grad': False,
    'clip': None,
}


def kl(logp, direction):
    """Any functions of the policy will do."""
    return jnp.exp(0.3 * logp) if direction == 'ref_to_policy' else 0.2 * logp**2 - logp


def computed(params, behaviour, beta, response_grad, label_grad, clip, **divergence):
    run = config.Run.model_validate(
        {
            'objective': {'beta': beta, 'response_grad': response_grad, 'label_grad': label_grad},
            'divergence': divergence,
            'optimizer': {'clip': clip},
        }
    )
    workload = Workload(
        init=lambda key: None,
        sample=lambda *args: None,
        predict_reference=lambda policies, inputs: None,
        compare=lambda policies, held, inputs: Compared(
            policies.policy.params,
            REFERENCE,
            kl(policies.policy.params, 'ref_to_policy'),
            kl(policies.policy.params, 'policy_to_ref'),
        ),
        auxiliary_loss=lambda policies, inputs, steps: (
            AUXILIARY * (policies.policy.params**2).sum() / steps,
            {'own': steps},
        ),
        group_size=K,
        refresh_updates=None,
    )
    prob = np.full((B, K, K), 0.5)
    prob[:, 0, 1], prob[:, 1, 0] = PROB, 1 - PROB
    labels = Preferences(prob, np.ones((B, K, K)))
    batch = Batch(None, behaviour, MASK, ROUTE, labels)
    return loss.make(workload, run)(
        params,
        Policies(Policy(LOGP, ()), Policy(LOGP, ())),
        Hyper.of(run),
        Minibatch(batch, None, loss.count(batch, workload, run)),
    )


def written_out(params, behaviour, beta, response_grad, label_grad, clip, **divergence):
    """Minus J's surrogate, plus lambda times the penalty's, plus the auxiliary loss; its parts."""
    stop = jax.lax.stop_gradient
    margin = beta * ((params - REFERENCE) * MASK)[:, :K].sum(-1)
    D = margin[:, 0] - margin[:, 1]
    own = 1 / (1 + jnp.exp(-D))
    own = label_grad * own + (1 - label_grad) * stop(own)
    P = jnp.where(ROUTE.policy_label_B, own, PROB)
    f = -P * jnp.log1p(jnp.exp(-D)) - (1 - P) * jnp.log1p(jnp.exp(D))
    ratio = jnp.exp(jnp.where(MASK > 0, params - behaviour, 0))

    # The baseline of a pair is the mean over the other rows.
    advantage = stop(f - (f.sum() - f) / (B - 1))[:, None, None] * MASK[:, :K]
    term = advantage * ratio[:, :K]
    if clip is not None:
        term = jnp.minimum(term, advantage * jnp.clip(ratio[:, :K], 1 - clip, 1 + clip))
    response = term[ROUTE.on_policy_B].sum() / B

    rows, lanes = {
        'policy': (ROUTE.on_policy_B, np.arange(L) < K),
        'data': (~ROUTE.on_policy_B, np.arange(L) < K),
        'reference': (np.ones(B, bool), np.arange(L) == K),
    }[divergence['states']]
    counted = (rows[:, None] & lanes).astype(float)
    if divergence['estimator'] == 'exact':
        steps = kl(params, divergence['direction']) * MASK
    else:
        steps = (REFERENCE - params) * MASK
        if divergence['direction'] == 'policy_to_ref':
            steps = -steps
    if divergence['reduction'] == 'mean':
        steps = steps / MASK.sum(-1, keepdims=True)
    penalty = surrogate = (steps.sum(-1) * counted).sum() / counted.sum()
    drawn = divergence['estimator'] == 'sampled' and divergence['direction'] == 'policy_to_ref'
    if divergence['visitation_grad'] or drawn:
        to_come = jnp.flip(jnp.cumsum(jnp.flip(steps, -1), -1), -1)
        if drawn:  # A step's own share counts, and is no path to the parameters.
            surrogate = 0
        else:
            to_come = to_come - steps
        # Of two lanes, the baseline of one is the other.
        centred = stop(to_come[:, :K] - jnp.flip(to_come[:, :K], 1)) * MASK[:, :K]
        term = centred * ratio[:, :K]
        if clip is not None:  # A cost is made rarer: the bound is the other one.
            term = jnp.maximum(term, centred * jnp.clip(ratio[:, :K], 1 - clip, 1 + clip))
        surrogate += term[ROUTE.on_policy_B].sum() / counted.sum()

    J = f.mean()
    auxiliary = AUXILIARY * (params**2).sum() / MASK.sum()
    total = auxiliary - J - response_grad * response + divergence['coefficient'] * surrogate
    return total, {'preference': J, 'kl': penalty, 'own': MASK.sum()}


CASES = [
    {},
    {'beta': 1.7},
    {'response_grad': 0.0},
    {'label_grad': 1.0},
    {'response_grad': 0.4, 'label_grad': 0.9},
    {'coefficient': 0.0},
    {'clip': 0.2},
    {'reduction': 'mean'},
    {'visitation_grad': True},
    {'visitation_grad': True, 'clip': 0.2},
    {'estimator': 'sampled', 'direction': 'policy_to_ref'},
    {'estimator': 'sampled', 'direction': 'policy_to_ref', 'clip': 0.2},
    *(
        {'states': states, 'direction': direction}
        for states, direction in itertools.product(
            ['policy', 'data', 'reference'], ['ref_to_policy', 'policy_to_ref']
        )
        if (states, direction) != ('policy', 'ref_to_policy')
    ),
    *(
        {'estimator': 'sampled', 'states': states, 'reduction': reduction}
        for states, reduction in itertools.product(['data', 'reference'], ['sum', 'mean'])
    ),
]


@functools.cache
def both(case):
    """Values, metrics and gradients of the loss and of the one written out."""
    settings = BASE | CASES[case]
    return [
        jax.device_get(
            jax.jit(jax.value_and_grad(partial(f, **settings), has_aux=True))(LOGP, BEHAVIOUR)
        )
        for f in (computed, written_out)
    ]


@pytest.mark.parametrize('case', range(len(CASES)), ids=map(str, CASES))
def test_every_setting_stands_where_it_should(x64, case):
    ((_, ours), gradient), ((_, theirs), wanted) = both(case)
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=1e-12)
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, atol=1e-12)
    coefficient = (BASE | CASES[case])['coefficient']
    objective = theirs['preference'] - coefficient * theirs['kl']
    np.testing.assert_allclose(ours['objective'], objective, atol=1e-12)


def test_every_setting_makes_a_difference(x64):
    gradients = [both(case)[1][1] for case in range(len(CASES))]
    for one, other in itertools.combinations(gradients, 2):
        assert np.abs(one - other).max() > 1e-3
