"""One update of soft actor-critic: env steps of N environments, and the gradient steps on them."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import sail_jax.control.compat  # noqa: F401

import jax
import jax.numpy as jnp
from brax.envs.base import Env
from brax.training.agents.sac.networks import SACNetworks

from sail_jax.control import policy as control_policy
from sail_jax.control import render
from sail_jax.control.sac import collect, explore, learn, replay
from sail_jax.control.sac.collect import Envs, Finished
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.learn import SacHyper, SacLearner
from sail_jax.control.sac.replay import PosedTransition, Replay, Transition
from sail_jax.core import keys, precision, update
from sail_jax.core.types import Metrics, Policy, State

GRADIENT_METRICS = (
    'critic_loss',
    'actor_loss',
    'entropy',
    'q',
    'kl',
    'temperature',
    'grad_norm',
)
"""NaN in updates without gradient steps."""


class Experience(NamedTuple):
    """`State.sampler`: all that the next update depends on besides policies and optimizers."""

    envs: Envs
    replay: Replay
    critics: Any
    targets: Any
    log_temperature: jax.Array
    gradient_steps: jax.Array
    distances: Any
    """Statistics of the unsupervised reward."""
    reward: Any
    """What `RewardFunctions` keeps; () where the reward is the environment's."""


class Now(NamedTuple):
    """Where all members of a sweep are together: what branches of the program go by.

    Under `vmap` a branch on a member's own number would take both ways for every member.
    """

    clock: jax.Array
    """Updates so far."""
    renew: jax.Array
    """Whether some member has used starts of episodes, bool."""


class RewardFunctions(NamedTuple):
    """A reward that is learned while the policy is: three pure functions."""

    init: Callable[[jax.Array], Any]
    """`key -> Experience.reward`."""
    predict: Callable[[Any, jax.Array, jax.Array], jax.Array]
    """`(Experience.reward, obs [..., O], action [..., A]) -> reward [...]`."""
    begin: Callable[[State, Now, jax.Array], tuple[State, Metrics]]
    """`(state, now, key) -> state, metrics`: what an update begins with."""


class UpdateKeys(NamedTuple):
    """Of randomness, for the parts of an update."""

    renew: jax.Array
    ask: jax.Array
    restart: jax.Array
    walk: jax.Array


def update_keys(state: State) -> UpdateKeys:
    """Those of the state's next update."""
    return UpdateKeys(*jax.random.split(keys.update_key(state.seed, state.step + 1), 4))


EnvStep = Callable[[Envs, jax.Array], tuple[Envs, Transition | PosedTransition, Finished]]
"""`(envs, action [N, A]) -> envs, row, finished`."""


def make_env_step(env: Env, run: SacRun) -> EnvStep:
    """`collect.step` of a run, with poses where people look at them."""
    pose = render.pose if run.labeller.by_people else None
    return partial(collect.step, env, run.env.episode_length, pose=pose)


Update = Callable[[State, Now], tuple[State, Metrics]]


def init_state(
    env: Env,
    networks: SACNetworks,
    run: SacRun,
    learned: RewardFunctions | None,
    start: Policy,
    seed: jax.Array,
) -> State:
    """The state before the first update; `hyper` is for whoever asks."""
    critic_key, env_key, reward_key = jax.random.split(keys.stream(seed, keys.INIT), 3)
    hyper: Any = SacHyper.of(run)
    learner = learn.init(run, networks, start, hyper, critic_key)
    envs = collect.begin(env, keys.row_keys(env_key, run.rollout.envs))
    action = jnp.zeros((run.rollout.envs, env.action_size))
    row = jax.eval_shape(make_env_step(env, run), envs, action)[1]
    zero = lambda: jnp.zeros((), jnp.int32)  # Donated: no two leaves may share a buffer.
    return State(
        policy=start,
        reference=jax.tree.map(jnp.copy, start),
        reference_step=zero(),
        shared=(),
        optimizer=learner.optimizers,
        sampler=Experience(
            envs=envs,
            replay=replay.init(run.replay_rows, row),
            critics=learner.critics,
            targets=learner.targets,
            log_temperature=learner.log_temperature,
            gradient_steps=learner.gradient_steps,
            distances=explore.init(),
            reward=learned.init(reward_key) if learned else (),
        ),
        seed=seed,
        hyper=hyper,
        step=zero(),
        labels=zero(),
        skipped=learner.skipped,
        skipped_in_a_row=learner.skipped_in_a_row,
    )


def learner_of(state: State) -> SacLearner:
    """What gradient steps change, out of the state."""
    there: Experience = state.sampler
    return SacLearner(
        actor=state.policy.params['policy'],
        critics=there.critics,
        targets=there.targets,
        log_temperature=there.log_temperature,
        optimizers=state.optimizer,
        gradient_steps=there.gradient_steps,
        skipped=state.skipped,
        skipped_in_a_row=state.skipped_in_a_row,
    )


class Practised(NamedTuple):
    """What gradient steps changed. The replay is not in it: what a branch returns is copied."""

    learner: SacLearner
    distances: Any
    """As of `Experience`."""


def with_practice(state: State, practised: Practised) -> State:
    """The state with what gradient steps changed."""
    there: Experience = state.sampler
    learner = practised.learner
    return state._replace(
        policy=learner.policy,
        optimizer=learner.optimizers,
        sampler=there._replace(
            critics=learner.critics,
            targets=learner.targets,
            log_temperature=learner.log_temperature,
            gradient_steps=learner.gradient_steps,
            distances=practised.distances,
        ),
        skipped=learner.skipped,
        skipped_in_a_row=learner.skipped_in_a_row,
    )


def make_update(
    env: Env, networks: SACNetworks, run: SacRun, learned: RewardFunctions | None = None
) -> Update:
    """The pure function that one update is.

    Args:
      learned: None learns from the environment's reward.
    """
    gradient_steps = make_gradient_steps(env, networks, run)
    walk = make_walk(env, networks, run, learned, gradient_steps)

    def renewed(envs: Envs, key: jax.Array) -> Envs:
        return collect.renew(env, envs, keys.row_keys(key, run.rollout.envs))

    def restarted(state: State, key: jax.Array) -> Practised:
        """New critics, and gradient steps at once on what there is."""
        new_key, learn_key = jax.random.split(key)
        practised = unpractised(state)
        learner = learn.with_new_critics(practised.learner, networks, new_key)
        count = run.unsupervised.reset_gradient_steps
        start = practised._replace(learner=learner)
        return gradient_steps(state, start, learn_key, jnp.array(False), count)[0]

    def update(state: State, now: Now) -> tuple[State, Metrics]:
        key = update_keys(state)
        there: Experience = state.sampler
        envs = jax.lax.cond(now.renew, renewed, lambda envs, key: envs, there.envs, key.renew)
        state = state._replace(sampler=there._replace(envs=envs))
        metrics: Metrics = {}
        if learned is not None:
            state, metrics = learned.begin(state, now, key.ask)
        if run.unsupervised.env_steps > 0:
            first = now.clock == run.reward_updates
            skip = lambda state, key: unpractised(state)
            state = with_practice(state, jax.lax.cond(first, restarted, skip, state, key.restart))
        state, walked = walk(state, now, key.walk)
        state = state._replace(step=state.step + 1)
        return refreshed(run, state, now), {**walked, **metrics, 'skipped': state.skipped}

    return update


def unpractised(state: State) -> Practised:
    """Before any gradient step."""
    return Practised(learner_of(state), state.sampler.distances)


GradientSteps = Callable[..., tuple[Practised, Metrics]]
"""`(state, start, key, unsupervised, count)`: gradient steps on the replay as it is, each on a
batch of its own; metrics are means over them."""


def make_gradient_steps(env: Env, networks: SACNetworks, run: SacRun) -> GradientSteps:
    """The gradient steps of a run."""
    gradient_step = learn.make_gradient_step(networks, run, env.action_size)
    exploration_rows = min(run.reward_updates * run.rollout.steps, run.replay_rows)

    def gradient_steps(
        state: State, start: Practised, key: jax.Array, unsupervised: jax.Array, count: int
    ) -> tuple[Practised, Metrics]:
        there: Experience = state.sampler
        hyper: Any = state.hyper

        def explored(distances: Any, batch: Transition) -> tuple[Any, jax.Array]:
            neighbours = run.unsupervised.neighbours
            far = explore.distances(batch.obs, there.replay, exploration_rows, neighbours)
            return explore.reward(distances, far)

        def one(now: Practised, key: jax.Array) -> tuple[Practised, Metrics]:
            batch_key, learn_key = jax.random.split(key)
            batch = replay.sample(there.replay, batch_key, run.replay.batch)
            distances = now.distances
            if run.unsupervised.env_steps > 0:
                told = lambda distances, batch: (distances, batch.reward)
                distances, reward = jax.lax.cond(unsupervised, explored, told, distances, batch)
                batch = batch._replace(reward=reward)
            learner, metrics = gradient_step(now.learner, batch, state.reference, hyper, learn_key)
            return Practised(learner, distances), metrics

        practised, metrics = jax.lax.scan(one, start, jax.random.split(key, count))
        return practised, jax.tree.map(jnp.mean, metrics)

    return gradient_steps


def make_walk(
    env: Env,
    networks: SACNetworks,
    run: SacRun,
    learned: RewardFunctions | None,
    gradient_steps: GradientSteps,
) -> Callable[[State, Now, jax.Array], tuple[State, Metrics]]:
    """The env steps of an update, with the gradient steps that are due after each."""
    env_step = make_env_step(env, run)

    def act(policy: Policy, obs_NxO: jax.Array, random: jax.Array, key: jax.Array) -> jax.Array:
        """Actions [N, A]: the policy's, or evenly random ones."""
        key_N = keys.row_keys(key, run.rollout.envs)
        dist = control_policy.actions(networks, policy, obs_NxO)
        draw = lambda how: jax.vmap(lambda key: how(key, dist.loc.shape[1:]))(key_N)
        evenly = partial(jax.random.uniform, minval=-1.0)
        sampled = jnp.tanh(dist.loc + dist.scale * draw(jax.random.normal))
        return jnp.where(random, draw(evenly), sampled)

    def skip(state: State, key: jax.Array) -> tuple[Practised, Metrics]:
        return unpractised(state), {name: jnp.array(jnp.nan) for name in GRADIENT_METRICS}

    def walk(state: State, now: Now, key: jax.Array) -> tuple[State, Metrics]:
        random = now.clock < run.random_updates
        unsupervised = ~random & (now.clock < run.reward_updates)

        def practise(state: State, key: jax.Array) -> tuple[Practised, Metrics]:
            count = run.gradient_steps
            return gradient_steps(state, unpractised(state), key, unsupervised, count)

        def tick(state: State, key: jax.Array) -> tuple[State, tuple[Finished, Metrics, Any]]:
            act_key, learn_key = jax.random.split(key)
            there: Experience = state.sampler
            action = act(state.policy, there.envs.obs, random, act_key)
            envs, row, finished = env_step(there.envs, action)
            if learned is not None:
                row = row._replace(reward=learned.predict(there.reward, row.obs, row.action))
            state = state._replace(
                sampler=there._replace(envs=envs, replay=replay.add(there.replay, row))
            )
            practised, metrics = jax.lax.cond(random, skip, practise, state, learn_key)
            return with_practice(state, practised), (finished, metrics, row.true_reward)

        state, (finished, metrics, reward) = jax.lax.scan(
            tick, state, jax.random.split(key, run.rollout.steps)
        )
        return state, {
            **jax.tree.map(jnp.mean, metrics),
            'episode_return': finished.episode_return.mean(where=finished.ended),
            'reward_per_step': reward.mean(),
            'ended': finished.ended.mean(),
            'not_finite': finished.broken.sum(),
        }

    return walk


def refreshed(run: SacRun, state: State, now: Now) -> State:
    """The policy in the place of the reference where that is due after this update."""
    if run.refresh_updates is None:
        return state
    reference, reference_step = jax.lax.cond(
        (now.clock + 1) % run.refresh_updates == 0,
        lambda: (state.policy, state.step),
        lambda: (state.reference, state.reference_step),
    )
    return state._replace(reference=reference, reference_step=reference_step)


def make_dispatch(
    one: Update, run: SacRun, updates: int, shardings: State | None = None, sweep: bool = False
) -> Callable[[State], tuple[State, Metrics]]:
    """Several updates in one compiled program; as of `core.update.make_dispatch`."""
    both = jax.vmap(one, in_axes=(0, None), spmd_axis_name='seed') if sweep else one

    @precision.traced_at(precision.resolved(run))
    def dispatch(state: State) -> tuple[State, Metrics]:
        def body(state: State, _: None) -> tuple[State, Metrics]:
            now = Now(clock=state.step.max(), renew=state.sampler.envs.used.any())
            state, metrics = both(state, now)
            return state, {**metrics, **update.counters(state)}

        state, metrics = jax.lax.scan(body, state, length=updates)
        # Of a sweep: members before updates.
        return state, jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), metrics)

    return update.jitted(dispatch, shardings)
