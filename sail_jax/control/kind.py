"""Control as a workload of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax import hub
from sail_jax.control.config import PYTHON, ControlRun, check, recorded
from sail_jax.errors import UserError
from sail_jax.kind import Doing, Figure, Kind, Line, Saved, late
from sail_jax.sweep import Members

if TYPE_CHECKING:
    from brax.envs.base import Env

    from sail_jax.control.act import Act
    from sail_jax.control.judgement import SegmentReward
    from sail_jax.episode import Episode
    from sail_jax.training.task import Task

BROKEN = 'episodes is sound: the simulator returned NaN or infinity in all of them'
TABLE = (
    Line('return, stochastic', 'return', 'return_se', f'stochastic {BROKEN}', good='high'),
    Line(
        'return, deterministic',
        'deterministic_return',
        'deterministic_return_se',
        f'deterministic {BROKEN}',
        good='high',
    ),
    Line('median return, stochastic', 'return_q50', good='high'),
    Line('success rate, stochastic', 'success_rate', good='high'),
    Line('success rate, deterministic', 'deterministic_success_rate', good='high'),
    Line('episode length', 'length'),
    Line('KL(policy || start) per step', 'kl_policy_to_start', good='small'),
    Line('KL(start || policy) per step', 'kl_start_to_policy', good='small'),
    Line('win rate against the start policy', 'win_rate', good='above 0.5'),
    Line('label accuracy, whole episodes', 'label_accuracy', good='above 0.5'),
    Line('margin, whole episodes', 'margin', good='above 0'),
    Line('episodes that broke the simulator', 'not_finite', good='0'),
)
SWEEP_TABLE = (
    Line('return', 'return', 'return_se', good='high'),
    Line('of the mode', 'deterministic_return', 'deterministic_return_se', good='high'),
    Line('KL per step', 'kl_policy_to_start', good='small'),
)


def penalised(run: ControlRun) -> dict[str, str]:
    """The paper's direction, which is penalised by default."""
    if run.divergence.coefficient == 0 or run.divergence.direction == 'policy_to_ref':
        return {}
    return {'eval/kl_start_to_policy': 'KL(start || policy), nats per step'}


FIGURE = Figure(
    x={'env_steps': 'env steps', 'labels': 'labels', 'wall_s': 'wall time (s)'},
    y={
        'eval/return': 'return (stochastic policy)',
        'eval/deterministic_return': 'return (deterministic policy)',
        'eval/kl_policy_to_start': 'KL(policy || start), nats per step',
    },
    subject=lambda run: run.env.subject,
    penalised=penalised,
)
CALLS: dict[Doing, str] = {
    'train': 'train from Python: sail_jax.train(CONFIG',
    'resume': "resume it from Python: sail_jax.train('{0}/config.yaml', '{0}', resume=True",
    'evaluate': "evaluate it from Python: sail_jax.evaluate('{0}'",
    'open': "open it from Python: sail_jax.open_run('{0}'",
}
"""What to do with the run of a directory instead, up to the arguments that are missing."""


def make_task(
    run: ControlRun,
    *,
    run_dir: Path | None = None,
    env: Env | None = None,
    segment_reward: SegmentReward | None = None,
) -> Task:
    """As of `task.make`; no task of control writes into the run directory."""
    from sail_jax.control import task

    return task.make(run, env, segment_reward)


def require(run: Any, run_dir: Path, handed: Mapping[str, Any], doing: Doing) -> None:
    """Refuses a run to which Python handed what is missing now."""
    names = {'env': run.env.name if run.env.backend == PYTHON else None}
    if doing in ('train', 'resume'):
        names['segment_reward'] = getattr(run, 'segment_reward', None)
    recorded = {key: name for key, name in names.items() if name is not None}
    if recorded.keys() - handed.keys():
        what = ' and '.join(f'{key} {name}' for key, name in recorded.items())
        arguments = ', '.join(f'{key}={key}' for key in recorded)
        call = CALLS[doing].format(run_dir)
        raise UserError(
            f'{run_dir}: {what} came from Python, and is not found by its name; '
            f'{call}, {arguments})'
        )


def cores(run: ControlRun) -> int:
    """Members of a sweep, or contexts, are trained side by side."""
    members = Members.of(run)
    return len(members.each) if members.sweep else run.rollout.parts


def render(
    saved: Saved,
    *,
    seed: int = 0,
    stochastic: bool = False,
    start: bool = False,
    env: Env | None = None,
    **networks: Any,
) -> Episode:
    """An episode; arguments and errors as of `sail_jax.control.render.render`."""
    from sail_jax.control import render

    policy, before = saved.policies()
    trained = 'best checkpoint' if saved.best else 'trained policy'
    return render.render(
        saved.run,
        before if start else policy,
        seed,
        stochastic,
        name=saved.run_dir.resolve().name,
        whose='policy before training' if start else trained,
        env=env,
        **networks,
    )


def export(
    saved: Saved,
    out: Path,
    *,
    adapter: bool = False,
    dtype: str | None = None,
    private: bool = False,
    env: Env | None = None,
) -> Path:
    """Writes a Brax PPO checkpoint, whose numbers are as they were trained."""
    options = {'--adapter': adapter, '--dtype': dtype is not None, '--private': private}
    if others := [name for name, is_set in options.items() if is_set]:
        raise UserError(f'{others[0]}: not for a control run')
    if hub.is_address(out):
        raise UserError(f'{hub.parse(out)}: what goes to the hub is a language model')
    from sail_jax.control import export

    policy, _ = saved.policies()
    return export.export_brax(saved.run, policy, out, env)


def load_policy(
    saved: Saved, *, deterministic: bool = True, env: Env | None = None, **networks: Any
) -> Act:
    """A function from observations to actions; see `sail_jax.control.act.make`."""
    from sail_jax.control import act

    policy, _ = saved.policies()
    return act.make(saved.run, policy, deterministic, env, **networks)


EVALUATE_REWARD = late('sail_jax.control.reward.of_run:evaluate_reward')

CONTROL = Kind(
    name='control',
    trains='a Brax or MuJoCo Playground policy, from compared segments',
    settings=ControlRun,
    check=check,
    task=make_task,
    programs=late('sail_jax.control.task:programs'),
    processes=True,
    cores=cores,
    from_python=('env', 'segment_reward'),
    recorded=lambda run, handed: recorded(run, handed.get('env'), handed.get('segment_reward')),
    require=require,
    table=TABLE,
    sweep_table=SWEEP_TABLE,
    figure=FIGURE,
    episodes='evaluation.episodes',
    render=render,
    export=export,
    load_policy=load_policy,
    export_labels=late('sail_jax.control.reward.of_run:export_answers'),
    learned_reward=late('sail_jax.control.reward.of_run:learned_reward'),
    evaluate_reward=EVALUATE_REWARD,
)
