"""What can be made of the reward that a run has learned: files, an evaluation."""

from pathlib import Path

import sail_jax.control.compat  # noqa: F401

import jax
from brax.envs.base import Env

from sail_jax import configfile
from sail_jax.control import envs, task
from sail_jax.control import policy as control_policy
from sail_jax.control.config import ControlRun
from sail_jax.control.reward import answers, evaluate, weights
from sail_jax.control.reward import ensemble as reward_ensemble
from sail_jax.control.reward.answers import Widths
from sail_jax.control.reward.ensemble import observed
from sail_jax.control.reward.evaluate import RewardReport
from sail_jax.control.reward.state import LearnedReward
from sail_jax.errors import UserError
from sail_jax.kind import Saved
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, setup


def learned(run: ControlRun, run_dir: Path, env: Env | None) -> LearnedReward:
    """Of a run's newest checkpoint.

    Raises:
      UserError: it has none; it is a sweep, or its reward is not learned.
    """
    members = Members.of(run)
    if members.sweep:
        one = members.each[0].directory(run_dir)
        raise UserError(f'{run_dir}: a sweep; name one of its runs, e.g. {one}')
    if not run.learns_reward:
        raise UserError(
            f'{run_dir}: labeller.source: {run.labeller.source}; a reward is learned from '
            'answers with labeller.source: reward'
        )
    layout = setup.Layout.of(members, task.make(run, env))
    rest = checkpoint.restore_rest(run_dir / 'checkpoints', layout.state)
    return jax.device_get(rest['sampler'].reward)


def export_answers(saved: Saved, out: Path, env: Env | None = None) -> Path:
    """Writes the pairs that the run has asked about; see `answers.write`."""
    labeller, reward = saved.run.labeller, learned(saved.run, saved.run_dir, env)
    if not reward.asked:
        raise UserError(f'{saved.run_dir}: its teacher was asked nothing yet')
    source = labeller.source if labeller.by_people else labeller.kind
    rows = answers.rows(reward.answers, reward.update_N, source, saved.run.env_steps_per_update)
    answers.write(out, rows)
    return out


def export_reward(saved: Saved, out: Path, env: Env | None = None) -> Path:
    """Writes the ensemble; see `weights.save`."""
    params = learned(saved.run, saved.run_dir, env).fitted.params
    weights.save(out, params, saved.run.reward, saved.run.env.subject)
    return out


def evaluate_reward(
    saved: Saved,
    *,
    reward: Path | None,
    episodes: int,
    held_out: Path | None = None,
    env: Env | None = None,
) -> RewardReport:
    """Holds a reward against the true one on the behaviour of a run's policies.

    Args:
      reward: a file, or another run's directory; None is the run's own.
      episodes: of the run's policy, and of the one that it started from.
      held_out: a file of answered pairs to hold it against besides.
    """
    run: ControlRun = saved.run
    made = envs.make(run.env, env)
    if reward is None or reward.is_dir():
        directory = reward or saved.run_dir
        whose: ControlRun = runs_of(directory) if reward else run
        settings, params = whose.reward, learned(whose, directory, env).fitted.params
        weights.say_if_other(directory, whose.env.subject, run.env.subject)
    else:
        settings, params = weights.settings(reward), None
    shape = control_policy.observation_shape(made)
    ensemble = reward_ensemble.make(settings, shape, made.action_size)
    if params is None:
        assert reward is not None
        abstract = jax.eval_shape(ensemble.init, jax.random.key(0)).params
        params = weights.load(reward, abstract, run.env.subject)
    known = {}
    if held_out is not None:
        widths = Widths(obs=observed(shape)[0], action=made.action_size)
        known = evaluate.on_answers(ensemble, params, answers.read(held_out, widths))
    trained, start = saved.policies()
    policies = {'start policy': start, 'trained policy': trained}
    run = run.model_copy(update={'reward': settings})
    report = evaluate.evaluate(run, made, params, policies, episodes)
    return report._replace(numbers={**report.numbers, **known})


def runs_of(run_dir: Path) -> ControlRun:
    """The configuration of a control run."""
    path = run_dir / 'config.yaml'
    data, node = configfile.read_yaml(path)
    return configfile.validate(ControlRun, data, path, node)
