"""The compiled programs of a run, as they can be compiled for devices that are not there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from sail_jax.core.types import State
from sail_jax.sweep import Members
from sail_jax.training import setup
from sail_jax.training.task import Task


class Program(NamedTuple):
    """One compiled program, and what it is for."""

    name: str
    """`update`, `draw`, `learn`, `score`, `evaluate`."""
    function: Any
    """Jitted; its donations count."""
    arguments: tuple[Any, ...]
    """Shapes, types and layouts (`jax.ShapeDtypeStruct`) of its arguments."""
    per_update: float
    """How often an update calls it, evaluations spread over the updates between them."""
    steps: int = 0
    """Env steps, or tokens, that a call takes one after the other, all lanes at once, at the most;
    0 where it takes none."""
    model_flops: float = 0.0
    """Operations of a call's matrix products over all devices that the model asks for, none of
    them done twice; 0 where nobody has worked them out."""
    batch: Any = ()
    """The arguments that the run does not keep between its programs."""
    evaluation: bool = False
    """It is none of an update's."""
    longest: int = 1
    """How often a loop goes round of which the compiled text does not tell."""


class Programs(NamedTuple):
    """What is compiled for a run, and what lies on its devices all the time."""

    programs: tuple[Program, ...]
    mesh: Mesh
    resident: Mapping[str, Any]
    """Shapes, types and layouts of what stays in memory between the programs, by `weights`,
    `optimizer`, `others`."""
    per_update: Mapping[str, int]
    """What an update gets done: `env_steps`, `pairs`, `prompts`, `tokens`."""
    smaller: str
    """What to do where memory is not enough for what a program computes."""
    split: str = ''
    """What to do where it is not enough for what the run keeps."""


def kept_weights(state: State, reference_stays: bool) -> tuple[Any, ...]:
    """What a run keeps beside its optimizer: the start policy too, for evaluations, where that is
    not the reference."""
    kept = state.policy, state.reference, state.shared
    return kept if reference_stays else (state.policy, *kept)


def of_task(run: Any, task: Task, mesh: Mesh, pairs: int, steps: int, episode: int) -> Programs:
    """Those of a task whose update is one program.

    Args:
      pairs: that an update compares.
      steps: that a lane of an update takes, one after the other.
      episode: the most steps that a lane of an evaluation takes.
    """
    members = Members.of(run)
    layout = setup.Layout.of(members, task)
    state = layout.state
    program = setup.make_program(members, task, layout.shardings)
    seed, hyper = state.seed, state.hyper
    evaluate = Program(
        name='evaluate',
        function=jax.jit(setup.evaluation(members, task)),
        arguments=(state.policy, state.policy, state.shared, seed, hyper),
        per_update=1 / task.evaluate_every,
        evaluation=True,
        steps=2 * episode,  # Of the policy, then of the start policy.
    )
    return Programs(
        programs=(
            Program(
                name='update',
                function=program,
                arguments=(state,),
                per_update=1 / task.updates_per_dispatch,
                steps=steps * task.updates_per_dispatch,
            ),
            evaluate,
        ),
        mesh=mesh,
        resident={
            'weights': kept_weights(state, task.reference_stays),
            'optimizer': state.optimizer,
            'others': state.sampler,
        },
        per_update={
            task.unit: task.units_per_update * len(members.each),
            'pairs': pairs * len(members.each),
        },
        smaller=task.smaller,
    )


Plan = Callable[[Any, Sequence[Any] | None], Programs]
"""`(run, devices) -> programs`; see `Kind.programs`."""
