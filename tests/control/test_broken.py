"""Evaluation where the simulator breaks: what an episode collected until then is no return."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sail_jax import reports
from sail_jax.control import evaluate, rollout
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.kind import TABLE
from sail_jax.control.rollout import Episodes
from sail_jax.core.keys import EVALUATE, stream
from sail_jax.core.types import Hyper
from sail_jax.sweep import Members
from sail_jax.training import devices
from sail_jax.training.saver import score as score_of
from tests.support.toy import SETTINGS, Point

LENGTH = 12
RUN = ControlRun.model_validate(
    {**SETTINGS, 'env': {'episode_length': LENGTH}, 'evaluation': {'episodes': 16}}
)


KINDS = [('reward', jnp.nan), ('obs', jnp.inf), ('reward', -jnp.inf), ('reset', jnp.nan)]


class Costly(Point):
    """-1 a step, and episodes as long as they may be; breaks at the third step.

    Args:
      kinds: what breaks, `reward`, `obs`, or the first observation (`reset`), and its value. The
        first is that of all start positions, further ones are drawn; none breaks nothing.
      share: of start positions that break.
    """

    def __init__(self, kinds=(), share=1.0):
        super().__init__()
        self._kinds, self._share = kinds, share

    def reset(self, rng):
        state = super().reset(rng)
        draw, kind = jax.random.uniform(rng, (2,))
        kind = jnp.floor(kind * len(self._kinds))
        state.info.update(t=jnp.zeros(()), kind=jnp.where(draw < self._share, kind, -1))
        return state.replace(obs=self._break(state, 'reset', state.obs))

    def step(self, state, action):
        t = state.info['t'] + 1
        position = jnp.clip(state.pipeline_state + 0.01 * action, -0.6, 0.6)
        late = t >= 3
        return state.replace(
            pipeline_state=position,
            obs=jnp.where(late, self._break(state, 'obs', position), position),
            reward=jnp.where(late, self._break(state, 'reward', -1.0), -1.0),
            info={**state.info, 't': t},
        )

    def _break(self, state, what, x):
        for kind, (name, value) in enumerate(self._kinds):
            if name == what:
                x = jnp.where(state.info['kind'] == kind, value, x)
        return x


def numbers(env):
    """Of a policy that is its own reference."""
    networks = control_policy.make_networks(env, RUN)
    policy = control_policy.init(jax.random.key(0), env, networks, RUN)
    made = evaluate.make(env, networks, RUN, devices.make_mesh(4))
    got = jax.device_get(made(policy, policy, (), np.uint32(0), Hyper.of(RUN)))
    return {key: float(x) for key, x in got.items()}


def test_a_broken_episode_is_counted_and_is_never_the_better_one():
    got = numbers(Costly(KINDS, share=0.7))
    key_B = evaluate.row_keys(stream(0, EVALUATE), RUN.evaluation.episodes)
    start = rollout.reset(Costly(KINDS, share=0.7), jax.vmap(jax.random.split)(key_B)[:, 0])
    kinds = start.info['kind'].tolist()
    assert {-1, *range(len(KINDS))} == set(kinds)
    assert got['not_finite'] == 3 * sum(kind >= 0 for kind in kinds)
    # Two steps and NaN would be a return of -2, and no step one of 0.
    for key in ('return', 'deterministic_return', 'return_q90', 'return_q10'):
        assert got[key] == -LENGTH
    assert (got['length'], got['deterministic_length']) == (LENGTH, LENGTH)
    assert got['win_rate'] == 0.5
    assert np.isfinite([got['kl_policy_to_start'], got['return_se']]).all()


def test_a_policy_without_a_sound_episode_has_no_return_and_says_so(capsys):
    got, sound = numbers(Costly([('reset', jnp.nan)])), numbers(Costly())
    assert got['not_finite'] == 3 * RUN.evaluation.episodes
    assert np.isnan([got['return'], got['deterministic_return'], got['label_accuracy']]).all()
    assert (sound['return'], sound['not_finite']) == (-LENGTH, 0)
    reports.print_comparison(TABLE, '', sound, got)
    said = ' '.join(capsys.readouterr().out.split())
    assert 'trained policy: none of its stochastic episodes is sound' in said
    assert 'reference: none' not in said
    assert 'episodes that broke the simulator │ 0 │ 48' in said
    row = {f'eval/{key}': value for key, value in got.items()}
    assert score_of(Members.of(RUN), ('eval/return',), [row]) == -np.inf


def episodes(returns, broken):
    """Three lanes of each start state; of the sums only the return matters."""
    one = jnp.ones(returns.shape)
    return Episodes(returns, one, one, 0 * one, one, one, one, one, broken)


@given(st.integers(0, 2**32 - 1))
def test_what_broke_is_below_everything_sound(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(size=(2, 4, 3)).astype(np.float32)
    broken, by_them = rng.random((2, 4, 3)) < 0.4
    other, sound = episodes(theirs, by_them), ~broken[:, :2]
    # Until it broke an episode may have collected more than any sound one, or less.
    results = [
        jax.device_get(summarise(episodes(np.where(broken, until, ours), broken), other))
        for until in (100.0, -100.0, np.nan)
    ]
    for got in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, got, results[0])
    got = results[0]
    assert got['not_finite'] == broken.sum()
    if not sound.any():
        assert np.isnan(got['return'])
        return
    of_both = np.concatenate([ours[:, :2][sound], theirs[:, :2][~by_them[:, :2]]])
    total = ours[:, :2][sound].sum() + (~sound).sum() * of_both.min()
    np.testing.assert_allclose(got['return'], total / 8, atol=1e-5)
    rank = lambda returns, broken: np.where(broken, -np.inf, returns)[:, :2]
    a, b = rank(ours, broken)[:, :, None], rank(theirs, by_them)[:, None]
    np.testing.assert_allclose(got['win_rate'], ((a > b) + (a == b) / 2).mean(), atol=1e-6)


summarise = jax.jit(lambda ours, theirs: evaluate.summarise(ours, theirs, 0.1))


def test_the_best_checkpoint_is_a_sound_one():
    def score(value, broken, metric=None):
        checkpoints = RUN.checkpoints.model_copy(update={'metric': metric})
        run = RUN.model_copy(update={'checkpoints': checkpoints})
        row = {'eval/return': value, 'eval/length': value, 'eval/not_finite': broken}
        return score_of(Members.of(run), ('eval/return',), [row])

    assert score(-1e6, 0) > score(1e6, 1) > score(0.5, 1) > score(0.25, 1) > score(1e6, 2)
    assert score(-5.0, 0, 'eval/length') > score(9.0, 1, 'eval/length')
    assert score(9.0, 0, '-eval/length') > score(5.0, 1, '-eval/length')
    assert score(3.0, 0) == 3.0
