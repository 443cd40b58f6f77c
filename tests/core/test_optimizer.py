"""Optimizers of Optax by name."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sail_jax import config, configfile
from sail_jax.config import Run
from sail_jax.core import optimizer, update
from sail_jax.errors import UserError


def settings(**values) -> config.Optimizer:
    return config.Optimizer.model_validate(values)


def three_steps(rule: optax.GradientTransformation) -> np.ndarray:
    """Where a parameter is after gradients of 1, -2 and 0.5."""
    params = jnp.asarray([0.3, -0.7])
    state = rule.init(params)
    for slope in (1.0, -2.0, 0.5):
        updates, state = rule.update(jnp.asarray([slope, slope / 3]), state, params)
        params = optax.apply_updates(params, updates)
    return np.asarray(params)


@pytest.mark.parametrize(
    ('rule', 'arguments'),
    [
        ('adam', {}),
        ('adam', {'b1': 0.5}),
        ('adamw', {'weight_decay': 0.3}),
        ('rmsprop', {'decay': 0.99, 'eps': 1e-8}),
        ('sgd', {'momentum': 0.9, 'nesterov': True}),
        ('lion', {}),
        ('adamw', {'weight_decay': 0.3, 'mask': False}),
    ],
)
def test_it_is_optaxs_with_its_arguments(rule, arguments):
    optimizer.check(settings(rule=rule, arguments=arguments))
    made = optimizer.make(
        settings(rule=rule, arguments=arguments, max_grad_norm=None), jnp.float32(0.1)
    )
    np.testing.assert_array_equal(
        three_steps(made), three_steps(getattr(optax, rule)(jnp.float32(0.1), **arguments))
    )


@pytest.mark.parametrize(
    ('rule', 'arguments', 'theirs'),
    [
        ('adamw', {'weight_decay': 0.01}, 'AdamW'),
        ('rmsprop', {'decay': 0.99, 'eps_in_sqrt': False}, 'RMSprop'),
    ],
)
def test_torchs_optimizers_have_these_arguments(rule, arguments, theirs):
    torch = pytest.importorskip('torch')
    params = torch.tensor([0.3, -0.7], requires_grad=True)
    other = getattr(torch.optim, theirs)([params], lr=0.1)
    for slope in (1.0, -2.0, 0.5):
        params.grad = torch.tensor([slope, slope / 3])
        other.step()
    made = optimizer.make(settings(rule=rule, arguments=arguments, max_grad_norm=None), 0.1)
    np.testing.assert_allclose(three_steps(made), params.detach(), rtol=1e-5)


def test_the_clip_comes_first():
    """Of gradients of norm 1.05, 2.11 and 0.53 the first two are clipped to 1."""
    made = optimizer.make(settings(rule='sgd'), 0.1)
    norm = (1 + 1 / 9) ** 0.5
    moved = 0.1 * np.asarray([1, 1 / 3]) * (1 / norm - 1 / norm + 0.5)
    np.testing.assert_allclose(three_steps(made), np.asarray([0.3, -0.7]) - moved, rtol=1e-5)


@pytest.mark.parametrize(
    ('values', 'wrong'),
    [
        ({'rule': 'rmsprob'}, r"optimizer\.rule: 'rmsprob'; did you mean rmsprop\?"),
        ({'rule': 'scale_by_adam'}, r"optimizer\.rule: 'scale_by_adam'"),
        ({'rule': 'nothing like it at all'}, 'there are acprop, .*sgd.* in Optax'),
        ({'rule': 'adam', 'arguments': {'beta1': 0.5}}, r'optimizer\.arguments: adam: .*beta1'),
        ({'rule': 'adam', 'arguments': {'learning_rate': 0.5}}, 'arguments: adam: .*learning_rate'),
        ({'rule': 'adam', 'arguments': {'b1': 'much'}}, r'optimizer\.rule: adam: raised'),
        ({'arguments': {'nesterov': 'no'}}, "adam: nesterov: 'no'; expected true or false"),
        ({'arguments': {'nesterov': 1}}, 'adam: nesterov: 1; expected true or false'),
        ({'arguments': {'eps': True}}, 'adam: eps: True; expected a number or text'),
        (
            {'rule': 'sgd', 'arguments': {'momentum': True}},
            'sgd: momentum: True; expected a number',
        ),
        ({'rule': 'lbfgs'}, r'optimizer\.rule: lbfgs: raised'),
        ({'rule': 'sgd', 'arguments': {'momentum': 1e308}}, 'momentum.*no finite step'),
        ({'rule': 'noisy_sgd'}, r"optimizer\.rule: 'noisy_sgd'"),
    ],
)
def test_what_cannot_be_used_is_one_line(values, wrong):
    run = configfile.update(Run(), {f'optimizer.{key}': value for key, value in values.items()})
    with pytest.raises(UserError, match=wrong) as error:
        update.check(run)
    assert '\n' not in str(error.value)


def test_every_name_that_is_offered_is_used_or_refused():
    usable = []
    for rule in optimizer._rules():
        with contextlib.suppress(UserError):
            optimizer.check(settings(rule=rule))
            usable.append(rule)
    assert {'adam', 'nadamw', 'rmsprop', 'muon', 'adafactor'} <= {*usable}
    params = {'a': jnp.ones((4, 4)), 'b': jnp.ones(4)}
    for rule in usable:
        made = optimizer.make(settings(rule=rule), 1e-2)
        new, _ = made.update(params, made.init(params), params)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(new)), rule


STACKS = {'kernel': (2, 3, 5), 'scale': (2, 4)}


def of_stacks(rule: str, stacked: str | None, apart: bool) -> dict[str, np.ndarray]:
    """Where two layers and an embedding are after two gradients.

    Args:
      stacked: as of `optimizer.make`.
      apart: give the layers as arrays by themselves; what comes out is stacked.
    """

    def arrays(seed):
        rng = np.random.default_rng(seed)
        layers = {name: rng.normal(size=shape).astype('f') for name, shape in STACKS.items()}
        if apart:
            layers = {name: tuple(x) for name, x in layers.items()}
        return {'layers': layers, 'embedding': rng.normal(size=(7, 5)).astype('f')}

    params = arrays(0)
    made = optimizer.make(settings(rule=rule), 0.1, stacked)
    state = made.init(params)
    for gradients in (arrays(1), arrays(2)):
        updates, state = jax.jit(made.update)(gradients, state, params)
        params = optax.apply_updates(params, updates)
    layers = {name: np.stack(x) for name, x in params['layers'].items()}
    return layers | {'embedding': np.asarray(params['embedding'])}


def differs(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return any(np.abs(a[name] - b[name]).max() > 1e-5 for name in a)


@pytest.mark.parametrize('rule', ['muon', 'lamb'])
def test_a_layer_of_a_stack_is_an_array_of_its_own(rule):
    apart = of_stacks(rule, None, apart=True)
    assert differs(apart, of_stacks(rule, None, apart=False))
    assert not differs(apart, of_stacks(rule, 'layers', apart=False))
    # Parameters of which none is in a layer.
    optimizer.check(settings(rule=rule), optimizer.make(settings(rule=rule), 0.1, 'layers'))


@pytest.mark.slow
def test_all_that_go_by_whole_arrays_are_known():
    of_arrays = []
    for rule in optimizer._rules():
        with contextlib.suppress(UserError):
            optimizer.check(settings(rule=rule))
            apart = of_stacks(rule, None, apart=True)
            assert not differs(apart, of_stacks(rule, 'layers', apart=False)), rule
            of_arrays += [rule] if differs(apart, of_stacks(rule, None, apart=False)) else []
    assert sorted(of_arrays) == [*optimizer.OF_ARRAYS]


def test_a_run_with_other_arguments_is_another_run():
    ours = Run().model_dump(mode='json')
    theirs = configfile.update(Run(), {'optimizer.arguments': {'b1': 0.5}}).model_dump(mode='json')
    assert configfile.another_runs(theirs, theirs) is None
    for saved, now in ((ours, theirs), (theirs, ours)):
        assert str(configfile.another_runs(saved, now)).startswith('optimizer.arguments {')
