"""Workloads trained on the devices of this process, for tests/devices/test_devices.py.

    python -m tests.support.spread hopper OUT

leaves the first batch of the quickstart's training;

    python -m tests.support.spread WORKLOAD OUT [THEIRS]

trains it whole, and again in two halves, and leaves the states at their ends and what was drawn.
With THEIRS, the OUT of a process with other devices, it only goes on with the half run there.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import sail_jax
from benchmarks.control_communication import collectives
from sail_jax import config, runs
from sail_jax.control.config import ControlRun
from sail_jax.core import gradient, loss, update
from sail_jax.core.types import Batch, Minibatch, Policy, State, Workload
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, devices, setup, trainer
from sail_jax.training.task import Task
from tests.support import bandit_workload, exact, small
from tests.support.checkpoints import without_times
from tests.support.toy import SETTINGS, Point

CONTROL = ControlRun.model_validate(
    {
        **SETTINGS,
        'total_env_steps': 50 * 16 * 4 * 5,
        'rollout': {'contexts': 16, 'group_size': 4, 'segment_length': 5, 'contexts_at_once': 2},
        'divergence': {'coefficient': 0.1},
        'optimizer': {'minibatches': 2},
        'reference': {'refresh_env_steps': 20 * 16 * 4 * 5},
        'evaluation': {'episodes': 4, 'every_updates': 24},
        'checkpoints': {'every_updates': 10},
    }
)
SHAPES = ((8, 2), (16, 8), (64, 2))
"""Contexts and lanes. Of the first, 8 devices have one context each."""
PROBLEM = exact.problem(seed=1, contexts=8, responses=5, features=3)


class Plan(NamedTuple):
    """A run of some length."""

    run: config.Trained
    make: Callable[[], Task]


def control(out: Path, updates: int = 50) -> Plan:
    run = CONTROL.model_copy(update={'total_env_steps': updates * CONTROL.env_steps_per_update})
    return Plan(run, lambda: runs.make_task(run, env=Point()))


def reward(out: Path, updates: int = 12) -> Plan:
    """Control whose reward is learned, from rounds before and after the half of the run."""
    settings = {
        'total_env_steps': updates * CONTROL.env_steps_per_update,
        'labeller': {'source': 'reward', 'mistake': 0.1},
        'reward': {
            'hidden': (8,),
            'passes': 4,
            'minibatch': 4,
            'questions': {
                'candidates': 12,
                'per_round': 5,
                'budget': 18,
                'every_env_steps': 2 * CONTROL.env_steps_per_update,
            },
        },
        'value': {'terminal': 'learned', 'hidden': (8,)},
        'evaluation': {'episodes': 4, 'every_updates': 4},
        'checkpoints': {'every_updates': 2},
    }
    run = ControlRun.model_validate(CONTROL.model_dump() | settings)
    return Plan(run, lambda: runs.make_task(run, env=Point()))


def bandit(out: Path, updates: int = 12) -> Plan:
    """The 4th and the 8th update are not finite; the labels do not last for all 12."""
    run = bandit_workload.run(
        objective={'mixture': {'dpr': 0.7, 'dpp': 0.2}},
        optimizer={'minibatches': 2},
        logging={'tensorboard': False},
    )
    teacher = config.Teacher(rationality=1.0, max_labels=150)
    faults = {3: float('nan'), 7: float('inf')}
    here = devices.replicated(devices.make_mesh(jax.device_count()))
    start = Policy({'theta': jnp.zeros(3)}, {'batches': jnp.zeros(())})
    workload = bandit_workload.make(PROBLEM, run, teacher=teacher, refresh_updates=4, faults=faults)
    task = Task(
        workload=workload,
        shardings=lambda state: jax.tree.map(lambda _: here, state),
        start=lambda seed: start,
        abstract_policy=jax.eval_shape(lambda: start),
        evaluate=jax.jit(lambda policy, *_: {'norm': jnp.linalg.norm(policy.params['theta'])}),
        updates=updates,
        updates_per_dispatch=2,
        evaluate_every=6,
        unit='contexts',
        units_per_update=8,
        max_labels=teacher.max_labels,
        watch={},
        best=('eval/norm',),
    )
    return Plan(run, lambda: task)


def language(out: Path, updates: int = 8, said: list | None = None) -> Plan:
    """Its reward notes the responses of the updates; evaluations have fewer."""
    model, prompts = out.parent / 'model', out.parent / 'prompts.jsonl'
    if not model.exists():
        small.checkpoint(model, multiple=8)
        small.data(prompts, rows=32)
    run = small.run(
        model,
        prompts,
        prompts_per_update=8,
        total_prompts=8 * updates,
        divergence={'coefficient': 0.1},
        optimizer={'warmup_updates': 2},
        evaluation={'every_updates': 4, 'prompts': 4},
        checkpoints={'every_updates': 4},
    )

    def reward(prompts, responses):
        if said is not None and len(responses) == 16:
            said.append(list(responses))
        return small.letters(prompts, responses)

    return Plan(run, lambda: runs.make_task(run, reward=reward))


HALVES = {'control': 24, 'reward': 4, 'bandit': 6, 'language': 4}


def named(tree: Any) -> dict[str, np.ndarray]:
    found = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def state_of(plan: Plan, directory: Path) -> State:
    with checkpoint.open_manager(directory / 'checkpoints') as manager:
        return checkpoint.restore(
            manager, setup.Layout.of(Members.of(plan.run), plan.make()).state
        )[0]


def left(plan: Plan, directory: Path) -> dict[str, Any]:
    """The whole state at the end of a run, and its rows without times."""
    return named(state_of(plan, directory)) | {'rows': json.dumps(without_times(directory))}


def start_state(plan: Plan) -> State:
    task = plan.make()
    return setup.initial_state(Members.of(plan.run), task, task.start(0))


def draw(plan: Plan, state: State) -> dict[str, np.ndarray]:
    """Everything that an update samples, labels included."""
    workload = plan.make().workload
    # Metrics are sums, whose order depends on the devices.
    sample = jax.jit(lambda state: update.draw(workload, state)._replace(metrics={}, statistics={}))
    return named(sample(state))


def draw_shape(contexts: int, lanes: int, at_once: int | None) -> dict[str, np.ndarray]:
    """The first batch of a control run of another shape."""
    changes = {'contexts': contexts, 'group_size': lanes, 'contexts_at_once': at_once}
    run = CONTROL.model_copy(update={'rollout': CONTROL.rollout.model_copy(update=changes)})
    plan = Plan(run, lambda: runs.make_task(run, env=Point()))
    return draw(plan, start_state(plan))


def communication() -> dict[str, Any]:
    plan = control(Path())
    task, layout = plan.make(), setup.Layout.of(Members.of(plan.run), plan.make())
    dispatch = update.make_dispatch(task.workload, plan.run, 1, layout.shardings)
    found = collectives(dispatch.lower(layout.state).compile().as_text())
    return {
        'devices': jax.device_count(),
        'kinds': [one.kind for one in found],
        'gradient_collectives': sum(one.in_gradient_step for one in found),
        'gradient_bytes': sum(one.bytes for one in found if one.in_gradient_step),
        'other_bytes': sum(one.bytes for one in found if not one.in_gradient_step),
        'parameter_bytes': sum(x.size * 4 for x in jax.tree.leaves(layout.policy.params)),
    }


PENALTIES = (
    {'states': 'policy', 'direction': 'ref_to_policy'},
    {'states': 'reference', 'direction': 'ref_to_policy', 'estimator': 'sampled'},
    {'states': 'policy', 'direction': 'policy_to_ref', 'reduction': 'sum', 'visitation_grad': True},
    {'states': 'data', 'direction': 'ref_to_policy', 'reduction': 'sum'},
)


def gradients() -> dict[str, np.ndarray]:
    """Of a batch of all kinds of rows: added up over the devices, and as the compiler does it."""

    def find(state: State, batch: Batch, workload: Workload, run: ControlRun) -> Any:
        held = workload.predict_reference(state.policies, batch.inputs)
        params = jax.tree.map(lambda x: x + 0.1, state.policy.params)
        minibatch = Minibatch(batch, held, loss.count(batch, workload, run))
        of = gradient.make(workload, run)
        (value, metrics), grads = of(params, state.policies, state.hyper, minibatch)
        return value, metrics, grads

    found = {}
    for index, penalty in enumerate(PENALTIES):
        settings = {
            'value': {'terminal': 'learned'},
            'objective': {'mixture': {'dpr': 0.4, 'dpp': 0.2, 'ddp': 0.2}},
            'labeller': {'skip': 0.5},
            'divergence': {'coefficient': 0.1, **penalty},
        }
        run = ControlRun.model_validate(CONTROL.model_dump() | settings)
        task = runs.make_task(run, env=Point())
        state = setup.initial_state(Members.of(run), task, task.start(0))
        batch = jax.jit(lambda state, task=task: update.draw(task.workload, state).batch)(state)
        for kind, mesh in (('split', task.workload.mesh), ('whole', None)):
            workload = task.workload._replace(mesh=mesh)
            got = jax.jit(partial(find, workload=workload, run=run))(state, batch)
            found |= named({index: {kind: got}})
    labels_B, route = batch.labels.weight_BxKxK.sum((1, 2)), np.asarray(batch.route)
    found['labels_of_a_device'] = np.asarray(labels_B).reshape(jax.device_count(), -1).sum(1)
    return found | {'routes': np.unique(route, axis=1).T}


def main(name: str, out: Path, theirs: Path | None = None) -> None:
    if name == 'hopper':
        run = sail_jax.load('configs/quickstart.yaml')
        rollout = run.rollout.model_copy(update={'contexts_at_once': run.rollout.contexts // 8})
        run = run.model_copy(update={'rollout': rollout})
        plan = Plan(run, lambda: runs.make_task(run))
        out.mkdir()
        np.savez(out / 'first.npz', **draw(plan, start_state(plan)))
        return
    said: list[list[str]] = []
    plans = {'control': control, 'reward': reward, 'bandit': bandit}
    make = plans.get(name, partial(language, said=said))
    plan, part = make(out), make(out, HALVES[name])
    out.mkdir()
    if theirs is None:
        trainer.train(plan.run, plan.make(), out / 'whole', quiet=True)
        np.savez(out / 'whole.npz', **left(plan, out / 'whole'), said=said[:1])
        trainer.train(part.run, part.make(), out / 'half', quiet=True)
        if name == 'control':
            for contexts, lanes in SHAPES:
                # The largest parts that 8 devices share.
                drawn = draw_shape(contexts, lanes, contexts // 8)
                np.savez(out / f'{contexts}x{lanes}.npz', **drawn)
            np.savez(out / 'at_once.npz', **draw_shape(*SHAPES[0], None))
    else:
        shutil.copytree(theirs / 'half', out / 'half')
    shutil.copytree(out / 'half', out / 'parts')
    if name != 'language':
        np.savez(out / 'first.npz', **draw(plan, start_state(plan)))
        np.savez(out / 'next.npz', **draw(plan, state_of(part, out / 'half')))
    said.clear()
    trainer.train(plan.run, plan.make(), out / 'parts', resume=True, quiet=True)
    np.savez(out / 'parts.npz', **left(plan, out / 'parts'), said=said[:1])
    if name == 'control':
        np.savez(out / 'communication.npz', **communication())
        if jax.device_count() > 1:
            np.savez(out / 'gradients.npz', **gradients())


if __name__ == '__main__':
    main(sys.argv[1], *map(Path, sys.argv[2:]))
