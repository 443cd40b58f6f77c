"""Training reward models as a workload of the registry."""

from __future__ import annotations

from pathlib import Path

from sail_jax.kind import Figure, Kind, Line, late
from sail_jax.language.kind import export
from sail_jax.language.reward.stage.config import RewardRun, check
from sail_jax.language.supervised.config import MODEL
from sail_jax.language.supervised.kind import task_of

TABLE = (
    Line('accuracy on held-out pairs', 'pair_accuracy', good='above 0.5'),
    Line('loss on held-out pairs, nats', 'loss', good='below 0.693'),
    Line('margin on held-out pairs', 'pair_margin', 'pair_margin_se', good='above 0'),
    Line('confidence on held-out pairs', 'confidence', good='the accuracy'),
    Line('calibration error', 'calibration_error', good='near 0'),
    Line('mean reward of held-out responses', 'mean_reward', good='near 0'),
    Line('spread of the heads', 'reward_spread', good='small'),
)

FIGURE = Figure(
    x={'prompts': 'prompts', 'wall_s': 'wall time (s)'},
    y={
        'eval/pair_accuracy': 'accuracy on held-out pairs',
        'eval/loss': 'loss on held-out pairs, nats',
    },
    subject=lambda run: Path(run.data.path).name,
)


REWARD = Kind(
    name='reward',
    trains='a reward model, on compared responses',
    settings=RewardRun,
    check=check,
    task=task_of('sail_jax.language.reward.stage.task'),
    programs=late('sail_jax.language.reward.stage.programs:programs'),
    processes=True,
    finish=late('sail_jax.language.supervised.task:leave_model'),
    leaves=MODEL,
    table=TABLE,
    figure=FIGURE,
    export=export,
)
