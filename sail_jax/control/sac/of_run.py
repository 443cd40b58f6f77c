"""What can be made of the reward that a run has learned, and of the answers that it has."""

from pathlib import Path
from typing import Any

import sail_jax.control.compat  # noqa: F401

import numpy as np
from brax.envs.base import Env

from sail_jax.control.reward import answers, of_run
from sail_jax.control.reward.state import Taught
from sail_jax.control.reward.weights import FittedReward
from sail_jax.control.sac import session, task
from sail_jax.control.sac.config import SacRun
from sail_jax.errors import UserError
from sail_jax.kind import Saved


def restored(saved: Saved, env: Env | None) -> Any:
    """`Taught`, or `TaughtByPeople`.

    Raises:
      UserError: as of `reward.of_run.restored`; nobody is asked about the reward.
    """
    if saved.run.reward.source == 'true':
        raise UserError(f'{saved.run_dir}: reward.source: true; nobody is asked about it')
    return of_run.restored(saved, task.make(saved.run, env))


def learned_reward(saved: Saved, env: Env | None = None) -> FittedReward:
    """The reward of a run; errors as of `restored`."""
    run: SacRun = saved.run
    reward = restored(saved, env)
    taught: Taught = reward.taught if run.labeller.by_people else reward
    return FittedReward(taught.fitted.params, run.reward, run.env.subject, saved.run_dir)


def export_answers(saved: Saved, out: Path, env: Env | None = None) -> Path:
    """Writes the pairs that the run has asked about; see `reward.answers.write`.

    Raises:
      UserError: as of `restored`, or of `reward.of_run.rows_of_people`; nobody was asked yet.
      UserError, TrainingFailed: the file cannot be written; no part of it stays.
    """
    if saved.run.labeller.by_people:
        rows = of_run.rows_of_people(saved)
    else:
        taught: Taught = restored(saved, env)
        rows = of_run.rows_of_teacher(saved, taught, asked_after(saved.run, taught))
    answers.write(out, rows)
    return out


def asked_after(run: SacRun, taught: Taught) -> np.ndarray:
    """Updates before each question to a teacher, who is asked every round in time; [N], 0 of those
    to come, and of answers that the run began with."""
    number_N = np.arange(run.reward.questions.budget)
    round_N = number_N // run.reward.questions.per_round
    after_N = run.reward_updates + round_N * session.every_updates(run)
    own_N = np.where(number_N < int(taught.asked), after_N, 0)
    return np.pad(own_N, (len(taught.margin_N) - len(own_N), 0))
