"""The paper's control experiments: does the RevKL penalty help what learns from few answers?

Soft actor-critic on the true reward, PEBBLE (a reward that is learned from 250 answers), and PEBBLE
with the RevKL penalty at 1e-4, which is what the paper's authors released as SAIL-RevKL, on MuJoCo
Playground's CheetahRun, WalkerWalk, WalkerStand and, in the place of MetaWorld's door-open,
PandaOpenCabinet (with 1000 answers; its robot is fetched with git); and this project's own SAIL
and SAIL-RevKL, which compare segments, on a reward that is learned from answers in the same way.
All but the first have the same number of answers, of the same teacher, about segments of the same
length; an arm's seeds train side by side.

    python -m benchmarks.paper_control --scale paper --runs runs/paper --out DIR
    python -m benchmarks.paper_control --scale small --runs runs/small --out DIR
    python -m benchmarks.paper_control --quick --runs runs/quick --out DIR

`paper` is as scripted by the authors (1024-wide, batches of 512, 400,000 env steps, 3 seeds);
`small` is for two cores. What is in --runs goes on where it stopped; what is finished is read. It
may be done an environment or an arm at a time (--envs, --arms): the report has what there is.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import sail_jax
from benchmarks import paper_control_report
from benchmarks.machine import machine, make_parser
from sail_jax import configfile, files, runs
from sail_jax.config import Trained
from sail_jax.control.config import ControlRun
from sail_jax.control.sac.config import SacRun
from sail_jax.errors import Interrupted, UserError
from sail_jax.sweep import Members
from sail_jax.training import metrics

ENVS = ('cheetah_run', 'walker_walk', 'walker_stand', 'panda_open_cabinet')
ARMS = {'SAC, true reward': '', 'PEBBLE': '_pebble', 'PEBBLE + RevKL': '_pebble_revkl'}
"""What the name of an arm's file ends with, in `configs/control/sac`."""
OURS = {'SAIL': 0.0, 'SAIL-RevKL': 0.1}
"""`divergence.coefficient` of the workload `control`."""
DIRECTORY = Path(__file__).parents[1] / 'configs' / 'control' / 'sac'


class Scale(NamedTuple):
    """How large the study is."""

    envs: tuple[str, ...]
    seeds: int
    settings: dict[str, Any]
    """In the place of the files'."""
    learned: dict[str, Any]
    """The same, of the arms whose reward is learned."""


SCALES = {
    'paper': Scale(ENVS, 3, {}, {}),
    'small': Scale(
        ('cheetah_run', 'walker_walk'),
        5,
        {
            'total_env_steps': 60_000,
            'actor.hidden': (256, 256),
            'critic.hidden': (256, 256),
            'rollout': {'envs': 5, 'steps': 20, 'update_to_data': 0.4},
            'replay': {'capacity': 120_000, 'batch': 256},
            'reference.refresh_env_steps': 10_000,  # Scaled with the length.
            'evaluation': {'every_updates': 50, 'episodes': 4},
            'checkpoints.every_updates': 100,
        },
        # Fits of PEBBLE's own size, 3 x 256, take longer than everything else.
        {'reward.hidden': (128, 128)},
    ),
    'quick': Scale(
        ('cheetah_run',),
        2,
        {
            'total_env_steps': 1200,
            'updates_per_dispatch': 1,
            # Brax's, which is compiled sooner.
            'env': {'name': 'inverted_pendulum', 'backend': 'spring', 'episode_length': 60},
            'actor.hidden': (16, 16),
            'critic.hidden': (16, 16),
            'rollout': {'envs': 5, 'steps': 20, 'random_env_steps': 200, 'update_to_data': 0.2},
            'replay': {'capacity': 1200, 'batch': 32},
            'evaluation': {'every_updates': 3, 'episodes': 2},
            'checkpoints.every_updates': 6,
        },
        {
            'unsupervised.env_steps': 100,
            'reward': {
                'hidden': (16,),
                'segment_length': 10,
                'passes': 5,
                'questions': {'candidates': 10, 'per_round': 5, 'budget': 10},
            },
            'reward.questions.every_env_steps': 200,
        },
    ),
}


CONTEXTS, GROUP = 5, 8
"""Segments of an update of ours: few, so that it is no longer than from round to round."""
OF_REPLAY = {'source', 'segment_length', 'newest_env_steps'}
"""Settings of a reward that only soft actor-critic has."""


def configuration(env: str, arm: str, scale: Scale, seeds: int) -> SacRun | ControlRun:
    """The run of an arm on an environment, all seeds."""
    if arm in OURS:
        return ours(configuration(env, 'PEBBLE', scale, seeds), OURS[arm])
    file = runs.load(DIRECTORY / f'{env}{ARMS[arm]}.yaml')
    assert isinstance(file, SacRun)
    settings = scale.settings | (scale.learned if file.reward.source == 'learned' else {})
    return configfile.update(file, settings | {'seeds': seeds, 'logging.tensorboard': False})


def ours(pebble: SacRun | ControlRun, coefficient: float) -> ControlRun:
    """SAIL with what PEBBLE has: environment, env steps, answers, reward ensemble, evaluations."""
    assert isinstance(pebble, SacRun)
    file = runs.load(DIRECTORY.parent / 'learned-reward-hopper.yaml')
    settings = {
        'env': pebble.env.model_dump(),
        'total_env_steps': pebble.total_env_steps,
        'updates_per_dispatch': 1,
        'policy.hidden': pebble.actor.hidden,
        'rollout': {
            'contexts': CONTEXTS,
            'group_size': GROUP,
            'segment_length': pebble.reward.segment_length,
        },
        'reward': pebble.reward.model_dump(exclude=OF_REPLAY),
        'optimizer.minibatches': CONTEXTS,
        'divergence.coefficient': coefficient,
        'evaluation': pebble.evaluation.model_dump(),
        'seeds': pebble.seeds,
        'logging.tensorboard': False,
    }
    run = configfile.update(file, settings)
    assert isinstance(run, ControlRun)
    evaluated = pebble.evaluation.every_updates * pebble.env_steps_per_update
    every = -(-evaluated // run.env_steps_per_update)
    return configfile.update(
        run, {'evaluation.every_updates': every, 'checkpoints.every_updates': 2 * every}
    )


def directory(arm: str) -> str:
    """What the run directory of an arm is called."""
    name = ARMS[arm].strip('_') if arm in ARMS else arm.lower().replace('-', '_')
    return name or 'true'


def evaluations(run: Trained, run_dir: Path) -> list[list[metrics.MetricsRow]]:
    """Of each seed, the rows with an evaluation."""
    return [
        [row for row in metrics.read_rows(path / 'metrics.jsonl') if 'eval/return' in row]
        for path in Members.of(run).directories(run_dir)
    ]


def finished(run: Trained, run_dir: Path) -> bool:
    """Whether every seed has the evaluation at its end."""
    if not all((path / 'metrics.jsonl').exists() for path in Members.of(run).directories(run_dir)):
        return False
    return all(
        rows and rows[-1]['env_steps'] >= run.total_env_steps for rows in evaluations(run, run_dir)
    )


def answers(run: SacRun | ControlRun) -> int:
    """How many an arm has to have been given at its end."""
    told = isinstance(run, SacRun) and run.reward.source == 'true'
    return 0 if told else run.reward.questions.budget


def train(run: SacRun | ControlRun, run_dir: Path) -> dict[str, Any]:
    """Returns at each evaluation, [seeds, evaluations]; goes on with, or reads, what is there.

    Raises:
      UserError: the run was too short for all its questions, so that it does not compare.
    """
    if not finished(run, run_dir):
        sail_jax.train(run, run_dir, resume=files.exists(run_dir / 'config.yaml'))
    rows = evaluations(run, run_dir)
    labels = rows[0][-1]['labels']
    if labels != answers(run):
        raise UserError(f'{run_dir}: {labels} answers at its end, and not {answers(run)}')
    numbers = {'stochastic': 'eval/return', 'mode': 'eval/deterministic_return'}
    if run.evaluation.success.metric:
        numbers['success'] = 'eval/deterministic_success_rate'
    return {
        'env_steps': [row['env_steps'] for row in rows[0]],
        'labels': labels,
        'seconds': max(member[-1]['wall_s'] for member in rows),
        **{
            name: [[row[key] for row in member] for member in rows] for name, key in numbers.items()
        },
    }


def main() -> None:
    parser = make_parser(__doc__, needs_out=True)
    parser.add_argument('--runs', type=Path, required=True, help='where runs are kept')
    parser.add_argument('--scale', choices=('paper', 'small'), default='small')
    parser.add_argument('--quick', action='store_true', help='only tries the parts')
    parser.add_argument('--envs', nargs='+', choices=ENVS)
    parser.add_argument('--arms', nargs='+', choices=[*ARMS, *OURS], default=[*ARMS, *OURS])
    parser.add_argument('--seeds', type=int, help="instead of the scale's")
    options = parser.parse_args()
    name = 'quick' if options.quick else options.scale
    scale = SCALES[name]
    seeds = options.seeds or scale.seeds
    options.out.mkdir(parents=True, exist_ok=True)
    for env in options.envs or scale.envs:
        for arm in options.arms:
            run = configuration(env, arm, scale, seeds)
            run_dir = options.runs / name / env / directory(arm)
            try:
                result = train(run, run_dir)
            except (UserError, Interrupted) as error:
                sys.exit(str(error))
            result |= {'machine': machine('benchmarks.paper_control')}
            paper_control_report.add(options.out, name, env, arm, result)


if __name__ == '__main__':
    main()
