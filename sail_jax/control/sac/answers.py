"""The answers that a run has learned from, as a file."""

from pathlib import Path
from typing import Any

import sail_jax.control.compat  # noqa: F401

import jax
import numpy as np
from brax.envs.base import Env

from sail_jax.control.reward import answers
from sail_jax.control.sac import session, task
from sail_jax.control.sac.config import SacRun
from sail_jax.control.sac.session import Taught
from sail_jax.errors import UserError
from sail_jax.kind import Saved
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, setup


def export_answers(saved: Saved, out: Path, env: Env | None = None) -> Path:
    """Writes the pairs that the run has asked about; see `reward.answers.write`.

    Raises:
      UserError: a sweep, or a run that nobody was asked about.
      UserError, TrainingFailed: the file cannot be written; no part of it stays.
    """
    run, members = saved.run, Members.of(saved.run)
    if members.sweep:
        one = members.each[0].directory(saved.run_dir)
        raise UserError(f'{saved.run_dir}: a sweep; name one of its runs, e.g. {one}')
    if run.reward.source == 'true':
        raise UserError(f'{saved.run_dir}: reward.source: true; nobody is asked about it')
    layout = setup.Layout.of(members, task.make(run, env))
    rest = checkpoint.restore_rest(saved.run_dir / 'checkpoints', layout.state)
    reward: Any = jax.device_get(rest['sampler'].reward)
    if run.labeller.by_people:
        taught, update_N, source = reward.taught, reward.update_N, run.labeller.source
    else:
        taught, update_N, source = reward, asked_after(run, reward), run.labeller.kind
    if not taught.asked:
        raise UserError(f'{saved.run_dir}: nobody was asked anything yet')
    answers.write(out, answers.rows(taught.answers, update_N, source, run.env_steps_per_update))
    return out


def asked_after(run: SacRun, taught: Taught) -> np.ndarray:
    """Updates before each question to a teacher, who is asked every round in time; [N], 0 of those
    to come."""
    number_N = np.arange(run.reward.questions.budget)
    round_N = number_N // run.reward.questions.per_round
    after_N = run.reward_updates + round_N * session.every_updates(run)
    return np.where(number_N < int(taught.asked), after_N, 0)
