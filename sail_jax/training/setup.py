"""A run's first state: its shapes and layout, and how it is made."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sail_jax import config
from sail_jax.core import update
from sail_jax.core.update import Hyper, Policy, State
from sail_jax.training import checkpoint, hosts
from sail_jax.training.task import Task


class Layout(NamedTuple):
    """Shapes, types and shardings of what a run holds, without holding it."""

    policy: Policy
    state: State
    shardings: State

    @classmethod
    def of(cls, run: config.Trained, task: Task) -> 'Layout':
        members = config.members(run)
        lead = lambda x: jax.ShapeDtypeStruct((len(members), *x.shape), x.dtype)
        policy = jax.tree.map(lead, task.abstract_policy) if members else task.abstract_policy
        state = jax.eval_shape(_init(run, task), policy, *identity(run, task))
        shardings = task.shardings(state)
        state = checkpoint.abstract_like(state, shardings)
        return cls(state.policy, state, shardings)


def _init(run: config.Trained, task: Task) -> Callable[[Policy, jax.Array, Hyper], State]:
    """`(start policy, seed, settings) -> state`, over the members of a sweep."""

    def init(start: Policy, seed: jax.Array, hyper: Hyper) -> State:
        if task.init is not None:
            return task.init(start, seed)
        return update.init(task.workload, run, start, start, seed=seed, hyper=hyper)

    return jax.vmap(init) if config.members(run) else init


def identity(run: config.Trained, task: Task) -> tuple[np.ndarray, Hyper]:
    """Seed and settings of the run; of a sweep, its members'. On the host, so that every process
    of a run has them."""
    runs = [member.run for member in config.members(run)]
    one = lambda run: (np.uint32(run.seed), task.hyper(run))
    if not runs:
        return one(run)
    return jax.tree.map(lambda *values: np.stack(values), *map(one, runs))


def stack(trees: Sequence[Any]) -> Any:
    """One tree whose leaves lead with an axis over the given ones."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def split(tree: Any, members: int) -> list[Any]:
    """The members' parts of what a sweep holds, on the host; with no members, all of it.

    Indexing on the devices would be a program with a collective for each leaf and member.
    """
    if not members:
        return [tree]
    tree = jax.device_get(tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(members)]


def start_policy(run: config.Trained, task: Task) -> Policy:
    """What training starts from; of a sweep, every member's."""
    members = config.members(run)
    if not members:
        return task.start(run.seed)
    by_seed = {seed: task.start(seed) for seed in dict.fromkeys(m.run.seed for m in members)}
    return stack([by_seed[member.run.seed] for member in members])


def initial_state(run: config.Trained, task: Task, start: Policy) -> State:
    """The state before the first update, laid out over the devices; `start` stays usable."""
    layout = Layout.of(run, task)
    init = jax.jit(_init(run, task), out_shardings=layout.shardings)
    placed = hosts.place(start._replace(frozen=()), layout.shardings.policy)
    state = init(placed, *identity(run, task))
    return with_frozen(state, start.frozen)


def with_frozen(state: State, frozen: Any) -> State:
    """The state with what its policy and reference share."""
    return state._replace(policy=state.policy._replace(frozen=frozen))
