"""What the control workload hands to the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sail_jax.control import judgement, workload
from sail_jax.control import policy as control_policy
from sail_jax.control import task as control_task
from sail_jax.control.config import ControlRun
from sail_jax.core import update
from sail_jax.core.types import Policies
from sail_jax.errors import UserError
from sail_jax.training import devices
from tests.support.toy import SETTINGS, Point, Poisoned, make_run, train


def make(settings=None, segment_reward=None, env=None):
    run = ControlRun.model_validate({**SETTINGS, **(settings or {})})
    env = env or Point(drift=0.05)
    networks = control_policy.make_networks(env, run)
    made = workload.make(env, networks, run, devices.make_mesh(4), segment_reward)
    policy = control_policy.init(jax.random.key(0), env, networks, run)
    other = control_policy.init(jax.random.key(1), env, networks, run)
    return run, made, policy, other


def sample(made, policy, other, seed=0):
    contexts, labels = made.init(jax.random.key(seed)), jnp.zeros((), jnp.int32)
    return jax.jit(made.sample)(Policies(policy, other), contexts, jax.random.key(7), labels)


@given(
    st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    st.integers(0, 8),
    st.floats(-5, 5),
    st.floats(0.1, 1.0),
)
def test_returns_to_go(rewards, happened, last, discount):
    T, n = len(rewards), min(happened, len(rewards))
    expected = [
        sum(discount ** (k - t) * rewards[k] for k in range(t, n)) + discount ** (n - t) * last
        for t in range(n)
    ]
    mask = jnp.asarray([np.arange(T) < n], jnp.float32)
    actual = judgement.returns_to_go(
        jnp.asarray([rewards]) * mask, mask, jnp.asarray([last]), discount
    )[0]
    np.testing.assert_allclose(actual[:n], expected, rtol=1e-4, atol=1e-4)


def test_labels_are_hard_consistent_and_counted():
    _, made, policy, other = make()
    sampled = sample(made, policy, other)
    prob = sampled.batch.labels.prob_BxKxK
    np.testing.assert_allclose(prob + prob.mT, 1)
    assert set(np.unique(prob)) <= {0, 0.5, 1}
    assert int(sampled.labels_asked) == 4 * 3


def test_the_step_size_falls_over_the_whole_run():
    """In 2 dispatches of 3 updates, though fewer env steps were asked for."""
    run, _, _, _ = make({'optimizer': {'decay': 'linear'}, 'updates_per_dispatch': 3})
    longer = run.model_copy(update={'total_env_steps': 5 * run.env_steps_per_update})
    networks = control_policy.make_networks(Point(), run)
    falling = workload.make(Point(), networks, longer, devices.make_mesh(4)).step_size
    shares = [falling(step) for step in range(6)]
    np.testing.assert_allclose(shares, 1 - np.arange(6) / 6, rtol=1e-6)
    assert make()[1].step_size(jnp.int32(5)) == 1


def test_a_number_for_the_segment_does_not_go_with_a_learned_value():
    with pytest.raises(UserError, match='returned one number'):
        make({'value': {'terminal': 'learned'}}, segment_reward=lambda s: s.reward.sum())


def test_segment_reward_replaces_the_environments():
    def leftwards(segment):
        return -segment.obs[:, 0] * segment.mask

    _, made, policy, other = make(segment_reward=leftwards)
    batch = sample(made, policy, other).batch
    returns = -(batch.inputs.obs[..., 0] * batch.mask_BxLxT).sum(-1)
    expected = (1 + np.sign(returns[:, :, None] - returns[:, None, :])) / 2
    np.testing.assert_array_equal(batch.labels.prob_BxKxK, expected)


@pytest.mark.parametrize(
    'judge', [lambda s: s.obs[:, 0] > 0, lambda s: (s.obs[:, 0] > 0).astype(jnp.int32)]
)
def test_a_judgement_in_whole_numbers_is_one_in_numbers(judge):
    learned = {'value': {'terminal': 'learned', 'hidden': [8]}}
    whole = make(learned, segment_reward=judge)
    same = make(learned, segment_reward=lambda s: judge(s).astype(jnp.float32))
    targets = [sample(*made[1:]).batch.inputs.value_target for made in (whole, same)]
    np.testing.assert_array_equal(*targets)


def test_one_number_for_a_segment_equals_its_steps_sum():
    per_step = make(segment_reward=lambda s: -s.obs[:, 0] * s.mask)
    at_once = make(segment_reward=lambda s: -(s.obs[:, 0] * s.mask).sum())
    labels = [sample(*made[1:]).batch.labels for made in (per_step, at_once)]
    np.testing.assert_array_equal(labels[0].prob_BxKxK, labels[1].prob_BxKxK)


@pytest.mark.parametrize(
    ('function', 'said'),
    [
        (lambda s: s.obs, r'returned shape \(5, 2\)'),
        (lambda s: s.reward[:-1], r'returned shape \(4,\)'),
        (lambda s: s.rewards, "raised AttributeError: 'Segment' object has no attribute 'rewards'"),
        (lambda s: 1 if s.reward.sum() > 0 else 0, 'raised TracerBoolConversionError'),
        (lambda s: None, 'returned NoneType'),
        (lambda s: {'reward': s.reward}, 'returned dict'),
        (lambda s: s.reward * 1j, 'returned complex64; expected real numbers'),
        (lambda s: np.asarray(s.reward), r'raised TracerArrayConversionError: .* \(test_workload'),
        (lambda: 0.0, 'raised TypeError: .* takes 0 positional arguments'),
        (
            lambda s: jax.pure_callback(np.asarray, s.reward, s.reward),
            'raised NotImplementedError: vmap is only supported for the pure_callback',
        ),
        ('energy', "'energy'; expected a function of a Segment"),
    ],
)
def test_a_segment_reward_that_raises_or_is_of_a_wrong_shape_is_one_line(function, said):
    with pytest.raises(UserError, match=f'segment_reward: {said}') as caught:
        make(segment_reward=function)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('settings', [{}, {'value': {'terminal': 'learned'}}])
def test_a_segment_that_broke_the_simulator_loses_to_every_sound_one(settings):
    # At -1 a step, what ends early has the larger return.
    rollout = {**SETTINGS['rollout'], 'contexts': 32}
    env = Poisoned('obs', spread=0.35)
    _, made, policy, other = make(
        {**settings, 'rollout': rollout}, lambda segment: -segment.mask, env
    )
    sampled = sample(made, policy, other)
    assert sampled.metrics['ended'] == 0  # What ends early broke.
    broken = np.asarray(sampled.batch.mask_BxLxT.sum(-1) < SETTINGS['rollout']['segment_length'])
    prob, weight, _ = sampled.batch.labels
    lost = broken[:, :, None] & ~broken[:, None]
    assert lost.sum() > 5
    np.testing.assert_array_equal(prob[lost], 0)
    np.testing.assert_array_equal(prob.mT[lost], 1)
    np.testing.assert_array_equal(weight[lost], 1)
    np.testing.assert_array_equal(weight[broken[:, :, None] & broken[:, None]], 0)


def test_a_regression_has_the_returns_of_sound_segments():
    """And no label where the simulator broke, whose return is none."""
    settings = {
        'rollout': {**SETTINGS['rollout'], 'contexts': 32},
        'objective': {'loss': 'rebel', 'beta': 1.0},
    }
    env, T = Poisoned('obs', spread=0.35), SETTINGS['rollout']['segment_length']
    _, made, policy, other = make(settings, lambda segment: -segment.mask, env)
    batch = sample(made, policy, other).batch
    sound = np.asarray(batch.mask_BxLxT.sum(-1) == T)
    assert 5 < (~sound).sum() < sound.sum()
    np.testing.assert_array_equal(batch.labels.reward_BxK, np.where(sound, -T, 0))
    both = sound[:, :, None] & sound[:, None, :] & ~np.eye(sound.shape[1], dtype=bool)
    np.testing.assert_array_equal(batch.labels.weight_BxKxK, both)


@pytest.mark.slow
def test_a_regression_on_returns_learns(tmp_path):
    run = make_run(
        total_env_steps=16 * 4 * 5 * 60,
        rollout={'contexts': 16, 'group_size': 4, 'segment_length': 5},
        objective={'loss': 'rebel', 'beta': 1.0},
        reference={'refresh_env_steps': 1},
        divergence={'coefficient': 0},
        optimizer={'learning_rate': 1e-2},
        evaluation={'episodes': 64, 'every_updates': 60},
        checkpoints={'every_updates': 60},
    )
    result = train(tmp_path / 'run', run)
    gained = result.after['eval/return'] - result.before['eval/return']
    assert gained > 5 * result.after['eval/return_se']


def test_a_typical_return_is_that_of_sound_segments():
    # At 1 a step all of them have the same, which is not above its own mean: no pair is kept.
    settings = {
        'rollout': {**SETTINGS['rollout'], 'contexts': 32},
        'labeller': {'skip': 1.0},
    }
    env = Poisoned('obs', spread=0.35)
    _, made, policy, other = make(settings, lambda segment: segment.mask, env)
    sampled = sample(made, policy, other)
    sound = np.asarray(sampled.batch.mask_BxLxT.sum(-1) == SETTINGS['rollout']['segment_length'])
    assert 5 < (~sound).sum() < sound.sum()
    np.testing.assert_array_equal(sampled.batch.labels.weight_BxKxK, 0)


def test_reference_lane_is_drawn_from_the_reference():
    settings = {'divergence': {'coefficient': 1.0, 'states': 'reference'}}
    run, made, policy, other = make(settings)
    batch = sample(made, policy, other).batch
    assert batch.mask_BxLxT.shape == (4, 4, 5)
    assert run.env_steps_per_update == 4 * 4 * 5
    policies = Policies(policy, other)
    held = made.predict_reference(policies, batch.inputs)
    logp = made.compare(policies, held, batch.inputs).reference_logp
    np.testing.assert_allclose(logp[:, 3], batch.behaviour_logp_BxLxT[:, 3], rtol=1e-4, atol=1e-5)
    assert np.abs(logp[:, :3] - batch.behaviour_logp_BxLxT[:, :3]).max() > 1e-2


def test_the_first_gradient_step_scores_a_batch_as_it_was_drawn():
    # With the observations' normaliser of then, not of afterwards, so that importance ratios are 1:
    # a policy that is its own reference has no margin, and no KL.
    run, made, policy, _ = make({'reference': {'refresh_env_steps': 1}})
    state = jax.jit(lambda policy: update.init(made, run, Policies(policy, policy)))(policy)
    step = update.make_dispatch(made, run, 1)
    for _ in range(3):
        before = np.array(state.policy.statistics.mean)
        state, metrics = step(state)
        assert np.abs(state.policy.statistics.mean - before).max() > 1e-3
        np.testing.assert_allclose([metrics['margin'], metrics['kl']], 0, atol=1e-6)


def test_normaliser_sees_only_steps_that_happened():
    _, made, policy, other = make(env=Point(drift=0.2))
    sampled = sample(made, policy, other)
    mask, obs = np.asarray(sampled.batch.mask_BxLxT, bool), np.asarray(sampled.batch.inputs.obs)
    assert not mask.all()
    np.testing.assert_allclose(sampled.statistics.mean, obs[mask].mean(0), rtol=1e-4)
    np.testing.assert_allclose(sampled.statistics.std, obs[mask].std(0), rtol=1e-4)


def test_task_refuses_a_group_over_devices_that_do_not_divide(monkeypatch):
    run = ControlRun.model_validate(SETTINGS)
    monkeypatch.setattr(jax, 'device_count', lambda: 3)
    with pytest.raises(UserError, match=r'4 rows .* do not divide by 3 devices'):
        control_task.make(run, env=Point())
    rollout = {**SETTINGS['rollout'], 'contexts_at_once': 2}
    run = ControlRun.model_validate({**SETTINGS, 'rollout': rollout})
    with pytest.raises(UserError, match=r'2 rows .*contexts_at_once\) do not divide by 3 devices'):
        control_task.make(run, env=Point())


@pytest.mark.parametrize(
    'learned',
    [pytest.param({}, marks=pytest.mark.slow), {'value': {'terminal': 'learned'}}],
)
def test_contexts_in_parts_are_the_same_samples(learned):
    rollout, sampled = SETTINGS['rollout'], []
    for contexts_at_once in (None, 2):
        settings = {'rollout': {**rollout, 'contexts_at_once': contexts_at_once}, **learned}
        _, made, policy, other = make(settings, env=Point(drift=0.1, spread=0.7))
        found = sample(made, policy, other)
        sampled.append((found.batch, found.sampler))
    for other in sampled[1:]:
        for ours, theirs in zip(*map(jax.tree.leaves, (sampled[0], other)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    ('labeller', 'abstains'), [({}, False), ({'skip': 0.1}, True), ({'max_labels': 9}, True)]
)
def test_where_pairs_may_have_no_label_baselines_are_over_all_rows(labeller, abstains):
    _, made, *_ = make({'labeller': labeller})
    assert made.abstains == abstains
