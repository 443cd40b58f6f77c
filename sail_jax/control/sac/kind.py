"""Soft actor-critic as a workload of the registry."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sail_jax.control.config import recorded
from sail_jax.control.kind import (
    EVALUATE_REWARD,
    FIGURE,
    SWEEP_TABLE,
    TABLE,
    load_policy,
    render,
    require,
)
from sail_jax.control.sac.config import SacRun, check
from sail_jax.kind import Kind, late
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from brax.envs.base import Env

    from sail_jax.training.task import Task

NETWORKS = late('sail_jax.control.sac.networks:make')


def make_task(run: SacRun, *, run_dir: Path | None = None, env: Env | None = None) -> Task:
    """As of `task.make`; no task writes into the run directory."""
    from sail_jax.control.sac import task

    return task.make(run, env)


def cores(run: SacRun) -> int:
    """Members of a sweep are trained side by side; a run alone is not divided."""
    members = Members.of(run)
    return len(members.each) if members.sweep else 1


SAC = Kind(
    name='sac',
    trains='a Brax or MuJoCo Playground policy, by soft actor-critic',
    settings=SacRun,
    check=check,
    task=make_task,
    programs=late('sail_jax.control.sac.task:programs'),
    cores=cores,
    from_python=('env',),
    recorded=lambda run, handed: recorded(run, handed.get('env'), None),
    require=require,
    table=TABLE,
    sweep_table=SWEEP_TABLE,
    figure=FIGURE._replace(penalised=lambda run: {}),
    episodes='evaluation.episodes',
    render=partial(render, make_networks=NETWORKS),
    load_policy=partial(load_policy, make_networks=NETWORKS),
    export_labels=late('sail_jax.control.sac.of_run:export_answers'),
    learned_reward=late('sail_jax.control.sac.of_run:learned_reward'),
    evaluate_reward=partial(EVALUATE_REWARD, make_networks=NETWORKS),
)
