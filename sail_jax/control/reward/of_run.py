"""What can be made of the reward that a run has learned: files, an evaluation."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import numpy as np
from brax.envs.base import Env

from sail_jax import sweep
from sail_jax.control import envs, task
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.policy import ActorNetworks
from sail_jax.control.reward import answers, beginning, evaluate, weights
from sail_jax.control.reward.evaluate import Behaviour, RewardReport
from sail_jax.control.reward.state import LearnedReward, Taught
from sail_jax.control.reward.weights import FittedReward
from sail_jax.errors import UserError
from sail_jax.kind import Saved
from sail_jax.labels.store import NAME, Store
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, setup
from sail_jax.training.task import Task


def restored(saved: Saved, task: Task) -> Any:
    """What the newest checkpoint of a run has of its reward and of the answers, on the host.

    Raises:
      UserError: it has no checkpoint; it is a sweep.
    """
    sweep.require_alone(saved.run, saved.run_dir)
    layout = setup.Layout.of(Members.of(saved.run), task)
    rest = checkpoint.restore_rest(saved.run_dir / 'checkpoints', layout.state)
    return jax.device_get(rest['sampler'].reward)


def taught(saved: Saved, env: Env | None) -> LearnedReward:
    """Of a control run; errors as of `restored`, and where its reward is not learned."""
    run: ControlRun = saved.run
    if not run.learns_reward:
        raise UserError(
            f'{saved.run_dir}: labeller.source: {run.labeller.source}; a reward is learned from '
            'answers with labeller.source: reward'
        )
    return restored(saved, task.make(run, env))


def learned_reward(saved: Saved, env: Env | None = None) -> FittedReward:
    """The reward of a control run; errors as of `taught`."""
    params = taught(saved, env).fitted.params
    return FittedReward(params, saved.run.reward, saved.run.env.subject, saved.run_dir)


def export_answers(saved: Saved, out: Path, env: Env | None = None) -> Path:
    """Writes the pairs that the run has asked about; see `answers.write`.

    Raises:
      UserError: as of `taught`, or of `rows_of_people`; nobody was asked yet.
      UserError, TrainingFailed: the file cannot be written; no part of it stays.
    """
    if saved.run.labeller.by_people:
        rows = rows_of_people(saved)
    else:
        reward = taught(saved, env)
        rows = rows_of_teacher(saved, reward, reward.update_N)
    answers.write(out, rows)
    return out


def rows_of_teacher(
    saved: Saved, reward: Taught | LearnedReward, update_N: jax.Array | np.ndarray
) -> Iterator[dict[str, Any]]:
    """What a teacher has answered, as the newest checkpoint has it.

    Args:
      update_N: as of `answers.rows`.

    Raises:
      UserError: nobody was asked yet.
    """
    if not reward.asked:
        raise UserError(f'{saved.run_dir}: its teacher was asked nothing yet')
    run = saved.run
    return answers.rows(reward.answers, update_N, run.labeller.kind, run.env_steps_per_update)


def rows_of_people(saved: Saved) -> Iterator[dict[str, Any]]:
    """What people have answered: it is in the store, those answers too that came after the newest
    checkpoint.

    Raises:
      UserError: the store cannot be used, or is of another run; nobody has answered yet.
    """
    store = Store(saved.run_dir / NAME)
    if (task := store.about().get('task')) != saved.run.env.subject:
        raise UserError(f'{store.path}: of a run of {task}, not of {saved.run.env.subject}')
    if not store.progress().answered:
        raise UserError(f'{store.path}: nobody has answered a question yet')
    return answers.rows_of_people(store, saved.run.env_steps_per_update)


# parameters: those of the command, and whose networks act
def evaluate_reward(
    saved: Saved,
    *,
    reward: FittedReward | Path,
    episodes: int,
    held_out: Path | None = None,
    env: Env | None = None,
    make_networks: Callable[[Env, Any], ActorNetworks] = control_policy.make_networks,
) -> RewardReport:
    """Holds a reward against the true one on the behaviour of a run's policies.

    Args:
      reward: a run's, or a file of `export_reward`.
      episodes: of the run's policy, and of the one that it started from.
      held_out: a file of answered pairs to hold it against besides.
      make_networks: of the environment and the run.
    """
    run = saved.run
    made = envs.make(run.env, env)
    if isinstance(reward, Path):
        reward = weights.read(reward)
    ensemble = beginning.make_ensemble(reward.sizes, made)
    abstract = jax.eval_shape(ensemble.init, jax.random.key(0)).params
    params = weights.used(reward, abstract, run.env.subject)
    known = {}
    if held_out is not None:
        pairs = answers.read(held_out, beginning.widths(made))
        known = evaluate.on_answers(ensemble, params, pairs)
    trained, start = saved.policies()
    policies = {'start policy': start, 'trained policy': trained}
    behaviour = Behaviour(run, made, make_networks(made, run), policies, episodes)
    report = evaluate.evaluate(behaviour, ensemble, params)
    return report._replace(numbers={**report.numbers, **known})
