"""What is to be trained, its shapes and layout, and its first state.

Arrays of a sweep lead with an axis over its members; those of a run alone have none.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sail_jax import config, configfile
from sail_jax.core import update
from sail_jax.core.types import Hyper, Policies, Policy, State
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, hosts
from sail_jax.training.callbacks import NO_CALLBACKS, Callbacks
from sail_jax.training.task import Evaluate, Task


class Layout(NamedTuple):
    """Shapes, types and shardings of what a run holds, without holding it."""

    policy: Policy
    state: State
    shardings: State

    @classmethod
    def of(cls, members: Members, task: Task) -> 'Layout':
        policy = task.abstract_policy
        if members.sweep:
            lead = (len(members.each),)
            policy = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((*lead, *x.shape), x.dtype), policy
            )
        state = jax.eval_shape(_init(members, task), policy, *identity(members, task))
        shardings = task.shardings(state)
        state = checkpoint.abstract_like(state, shardings)
        return cls(state.policy, state, shardings)


class Job(NamedTuple):
    """What is to be trained, and where; settled before anything is written."""

    members: Members
    task: Task
    layout: Layout
    digests: dict[str, str]
    """`Task.digests`."""
    run_dir: Path
    resume: bool
    quiet: bool
    callbacks: Callbacks = NO_CALLBACKS
    in_turn: bool = False
    """As of `trainer.train`."""

    @classmethod
    def of(cls, run: config.Trained, task: Task, run_dir: Path, **options: Any) -> 'Job':
        """`options` are resume, quiet, callbacks and in_turn."""
        members = Members.of(run)
        return cls(members, task, Layout.of(members, task), task.digests(), run_dir, **options)

    @property
    def run(self) -> config.Trained:
        """The configuration."""
        return self.members.run

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration as checkpoints have it."""
        return self.run.model_dump(mode='json')

    @property
    def inputs(self) -> dict[str, str]:
        """All that several processes of the run must have alike, by what errors call it."""
        settings = configfile.flatten(self.run)
        files = {f'the file of {name}': digest for name, digest in self.digests.items()}
        told = {'--resume': self.resume, **settings}
        return {key: repr(value) for key, value in told.items()} | files

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / 'checkpoints'

    @property
    def saved(self) -> str:
        """For what ends a run: where to look."""
        return f'checkpoints so far are in {self.checkpoints}'

    def say(self, line: str) -> None:
        """Says what nobody needs who wants it quiet."""
        if not self.quiet:
            hosts.say(line)


def _init(members: Members, task: Task) -> Callable[[Policy, jax.Array, Hyper], State]:
    """`(start policy, seed, settings) -> state`, over the members of a sweep."""

    def init(start: Policy, seed: jax.Array, hyper: Hyper) -> State:
        if task.init is not None:
            return task.init(start, seed)._replace(hyper=hyper)
        assert task.workload is not None  # A task without one has its own `init`.
        return update.init(
            task.workload, members.shared, Policies(start, start), seed=seed, hyper=hyper
        )

    return jax.vmap(init) if members.sweep else init


def make_program(members: Members, task: Task, shardings: State) -> Any:
    """The jitted function of a dispatch, where the host has no part in it."""
    if task.program is not None:
        return task.program(shardings, members.sweep)
    assert task.workload is not None  # A task without one has its own.
    return update.make_dispatch(
        task.workload, members.shared, task.updates_per_dispatch, shardings, members.sweep
    )


def identity(members: Members, task: Task) -> tuple[Any, Hyper]:
    """Seed, uint32, and `State.hyper`; on the host, so that every process of a run has them."""
    return stack(members, [(np.uint32(m.run.seed), task.hyper(m.run)) for m in members.each])


def start_policy(members: Members, task: Task) -> Policy:
    """What training starts from; made or loaded once for each seed."""
    seeds = [member.run.seed for member in members.each]
    by_seed = {seed: task.start(seed) for seed in dict.fromkeys(seeds)}
    return stack(members, [by_seed[seed] for seed in seeds])


def initial_state(
    members: Members, task: Task, start: Policy, shared: Any = (), layout: Layout | None = None
) -> State:
    """The state before the first update, laid out over the devices; `start` stays usable.

    Args:
      layout: where there is one already: it takes a trace, seconds with a large simulator.
    """
    layout = layout or Layout.of(members, task)
    init = jax.jit(_init(members, task), out_shardings=layout.shardings)
    placed = hosts.place(start, layout.shardings.policy)
    return init(placed, *identity(members, task))._replace(shared=shared)


def evaluation(members: Members, task: Task) -> Evaluate:
    """`Task.evaluate`, of a sweep vmapped over its members."""
    if not members.sweep:
        return task.evaluate
    return jax.jit(jax.vmap(task.evaluate, spmd_axis_name='seed'))


def stack(members: Members, trees: Sequence[Any]) -> Any:
    """One tree of the members' trees, on the host; of a run alone, its own as it is."""
    if not members.sweep:
        return trees[0]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def split(members: Members, tree: Any) -> list[Any]:
    """The members' parts of a tree, on the host; of a run alone, all of it as it is.

    Indexing on the devices would be a program with a collective for each leaf and member.
    """
    if not members.sweep:
        return [tree]
    tree = jax.device_get(tree)
    return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(members.each))]
