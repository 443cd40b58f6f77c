"""What a pair is worth: formulas of the papers, names, and names that a program gives."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sail_jax
from sail_jax import configfile
from sail_jax.config import Run
from sail_jax.core import pair_losses, update
from sail_jax.core.objective import Form, margins, smoothed, worth
from sail_jax.core.types import Preferences
from sail_jax.errors import UserError

BETA = 0.2
# Of log-ratios -3, 0, 2 and 8 between two responses, times beta.
MARGIN = np.array([-0.6, 0.0, 0.4, 1.6], np.float32)


@pytest.mark.parametrize(
    ('name', 'values', 'slopes'),
    [
        (
            'dpo',
            [-1.0374880, -0.6931472, -0.5130153, -0.1839007],
            [0.645656, 0.5, 0.401312, 0.167982],
        ),
        # The log-ratio's distance to 1 / (2 * 0.2) = 2.5, squared: 5.5, 2.5, 0.5, 5.5.
        ('ipo', [-30.25, -6.25, -0.25, -30.25], [55, 25, 5, -55]),
        ('hinge', [-1.6, -1.0, -0.6, 0.0], [1, 1, 1, 0]),
        ('rebel', [-0.36, 0.0, -0.16, -2.56], [1.2, 0.0, -0.8, -3.2]),
        (
            'simpo',
            [-1.0374880, -0.6931472, -0.5130153, -0.1839007],
            [0.645656, 0.5, 0.401312, 0.167982],
        ),
    ],
)
def test_values_and_slopes(name, values, slopes):
    loss = pair_losses.named(name)
    np.testing.assert_allclose(loss(MARGIN, BETA), values, rtol=1e-5)
    slope = jax.vmap(jax.grad(loss), (0, None))(MARGIN, BETA)
    np.testing.assert_allclose(slope, slopes, rtol=1e-4)


@pytest.mark.parametrize(
    ('name', 'theirs', 'margin', 'smoothing'),
    [
        ('dpo', 'sigmoid', 0.0, 0.0),
        ('dpo', 'sigmoid', 0.0, 0.2),
        ('hinge', 'hinge', 0.0, 0.0),
        ('ipo', 'ipo', 0.0, 0.0),
        ('simpo', 'simpo', 0.5, 0.0),
    ],
)
def test_losses_are_trls(name, theirs, margin, smoothing):
    """CPO's takes what margins are of: log-ratios of whole responses, or SimPO's means."""
    torch = pytest.importorskip('torch')
    trainer = pytest.importorskip('trl.experimental.cpo').CPOTrainer
    implicit = np.random.default_rng(0).normal(size=(5, 2), scale=3).astype(np.float32)
    asked = types.SimpleNamespace(
        alpha=0.0,
        beta=BETA,
        loss_type=theirs,
        simpo_gamma=margin,
        label_smoothing=smoothing,
        accelerator=types.SimpleNamespace(device='cpu'),
    )
    wanted, *_ = trainer.cpo_loss(asked, *map(torch.tensor, implicit.T))
    D = margins(implicit, BETA)
    labels = Preferences(np.broadcast_to([[0.5, 1.0], [0.0, 0.5]], D.shape), np.ones(D.shape))
    form = Form(pair_losses.named(name), target_margin=margin, label_smoothing=smoothing)
    got = worth(D, smoothed(labels, smoothing).prob_BxKxK, form, BETA)
    np.testing.assert_allclose(-got[:, 0, 1], wanted, rtol=1e-5)


@pytest.mark.parametrize('name', pair_losses.PAIR_LOSSES)
def test_a_soft_label_is_worth_its_share_of_both_orders(name):
    loss, P = pair_losses.named(name), 0.7
    D = jnp.array([[[0.0, 0.9], [-0.9, 0.0]]])
    prob = jnp.array([[[0.5, P], [1 - P, 0.5]]])
    wanted = P * loss(0.9, BETA) + (1 - P) * loss(-0.9, BETA)
    got = worth(D, prob, Form(loss), BETA)
    np.testing.assert_allclose(got[0, [0, 1], [1, 0]], wanted, rtol=1e-6)


def test_names_that_nobody_has_given_are_one_line():
    run = Run().model_copy(update={'objective': Run().objective.model_copy(update={'loss': 'dop'})})
    with pytest.raises(UserError) as error:
        update.check(run)
    said = str(error.value)
    assert said.startswith(
        "objective.loss: 'dop'; did you mean dpo? There are dpo, ipo, hinge, simpo, rebel"
    )
    assert '\n' not in said


def test_a_loss_that_a_program_adds_is_known_by_its_name(monkeypatch):
    monkeypatch.setitem(sail_jax.PAIR_LOSSES, 'mine', lambda margin, beta: -jnp.exp(-margin))
    run = configfile.update(Run(), {'objective.loss': 'mine'})
    update.check(run)
    assert pair_losses.named(run.objective.loss)(0.0, 0.1) == -1


@pytest.mark.parametrize(
    ('loss', 'wrong'),
    [
        (lambda margin, beta: margin.mean(), r'in the margin.s shape \(2, 4, 4\); got \(\)'),
        (lambda margin: margin, 'raised TypeError: .*takes 1 positional argument'),
        (lambda margin, beta: np.log(margin), 'use jnp.where'),
        (lambda margin, beta: margin > 0, 'expected floating-point numbers, got bool'),
        (lambda margin, beta: None, 'got NoneType'),
        (
            lambda margin, beta: jax.pure_callback(np.tanh, margin, margin),
            'its gradient: raised ValueError: Pure callbacks do not support JVP',
        ),
        (
            lambda margin, beta: jax.lax.fori_loop(0, jnp.int32(beta), lambda i, x: x / 2, margin),
            'its gradient: raised ValueError: Reverse-mode differentiation does not work',
        ),
    ],
)
def test_a_loss_that_no_update_can_use_is_one_line(loss, wrong, monkeypatch):
    monkeypatch.setitem(sail_jax.PAIR_LOSSES, 'mine', loss)
    with pytest.raises(UserError, match=f'^objective.loss: mine: .*{wrong}') as error:
        update.check(configfile.update(Run(), {'objective.loss': 'mine'}), 4)
    assert '\n' not in str(error.value)
