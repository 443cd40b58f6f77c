"""Orbax checkpoints of a training state.

A checkpoint has three items: `policy`, which is all that evaluation or another run's reference
needs; `training`, the rest of `update.State`; and `meta`, JSON with a schema number.
"""

import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sail_jax import config, hosts
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.update import Policy, State

SCHEMA = 2

log = logging.getLogger(__name__)


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> Any:
        """None also where the file is damaged: no reason not to open the directory."""
        try:
            return {'score': float(super().metrics(step)['score'])}
        except (OSError, ValueError, TypeError, LookupError):
            return None


def open_manager(
    directory: Path, settings: config.Checkpoints | None = None
) -> ocp.CheckpointManager:
    """Orbax's manager; saves are asynchronous and atomic.

    Args:
      settings: how many of the newest and of the best are kept; None only reads.
    """
    options = ocp.CheckpointManagerOptions(create=False)
    if settings is not None:
        by_score = lambda metrics: metrics['score']  # noqa: E731
        keep = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(settings.keep),
                checkpoint_managers.BestN(
                    get_metric_fn=by_score,
                    n=settings.keep_best,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(best_fn=by_score, preservation_policy=keep)
    return _Manager(directory.absolute(), options=options)


def scores(manager: ocp.CheckpointManager) -> dict[int, float]:
    """Of the checkpoints that were evaluated, by step."""
    found = {step: manager.metrics(step) for step in manager.all_steps()}
    return {
        step: metrics['score']
        for step, metrics in found.items()
        if metrics and math.isfinite(metrics['score'])
    }


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: State,
    meta: dict[str, Any],
    score: float = -math.inf,
) -> None:
    """Starts a save of the state after `step` updates; returns once the arrays are off the devices.

    What `Policy.frozen` holds is left out: whoever made it can make it again.

    Args:
      score: more is better; -inf where there was no evaluation.
    """
    if manager.latest_step() == step:
        return
    policy, training = state.policy._replace(frozen=()), _training(state)
    marks = {'policy': fingerprint(policy), 'training': fingerprint(training)}
    saved = manager.save(
        step,
        args=ocp.args.Composite(
            policy=ocp.args.StandardSave(policy),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave({**meta, 'schema': SCHEMA, 'fingerprints': marks}),
        ),
        metrics={'score': score},
    )
    if not saved:
        raise TrainingFailed(f'{manager.directory}: update {step} was not saved')


def restore(manager: ocp.CheckpointManager, abstract: State) -> tuple[State, dict[str, Any]]:
    """The newest readable checkpoint.

    Newer ones that cannot be read are named and set aside as `damaged-STEP`, so that their updates
    can be saved again.

    Args:
      abstract: shapes, types and shardings to restore to.

    Raises:
      UserError: if there is none.
    """
    args = ocp.args.Composite(
        policy=ocp.args.StandardRestore(abstract.policy),
        training=ocp.args.StandardRestore(_training(abstract)),
        meta=ocp.args.JsonRestore(),
    )
    step, restored = _restore_first(manager, _newest_first(manager), args)
    meta = restored['meta']
    if meta['schema'] != SCHEMA:
        raise UserError(
            f'{manager.directory}/{step}: has schema {meta["schema"]}, this version reads {SCHEMA}'
        )
    damaged = [later for later in manager.all_steps() if later > step]
    for later in damaged if hosts.is_main() else []:
        path = Path(manager.directory) / str(later)
        path.rename(path.with_name(f'damaged-{later}-{time.time_ns()}'))
    if hosts.any_process(bool(damaged)):
        manager.reload()
    training = jax.tree.map(
        lambda x, saved: saved if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding),
        _but_policy(abstract),
        restored['training'],
    )
    return State(policy=restored['policy'], **training), meta


def restore_policy(directory: Path, abstract: Policy, best: bool = False) -> Policy:
    """Only the policy, of the newest readable checkpoint, or of the one with the best score.

    Raises:
      UserError: if there is none.
    """
    with open_manager(directory) as manager:
        steps = _newest_first(manager)
        if best:
            found = scores(manager)
            steps = sorted(found, key=lambda step: (found[step], step), reverse=True)
            if not steps:
                raise UserError(
                    f'{directory}: no checkpoint has a score; a run keeps its best with '
                    'checkpoints.keep_best above 0, and a sweep keeps none'
                )
        args = ocp.args.Composite(
            policy=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        return _restore_first(manager, steps, args)[1]['policy']


def _training(state: State) -> dict[str, Any]:
    """The rest of the state, without its empty arrays (MJX has some), which Orbax refuses."""
    return jax.tree.map(lambda x: x if x.size else None, _but_policy(state))


def _but_policy(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != 'policy'}


def _newest_first(manager: ocp.CheckpointManager) -> list[int]:
    return sorted(manager.all_steps(), reverse=True)


def _restore_first(
    manager: ocp.CheckpointManager, steps: Sequence[int], args: ocp.args.Composite
) -> tuple[int, Any]:
    """The first of these that can be read."""
    reason = ''
    for step in steps:
        try:
            restored = manager.restore(step, args=args)
            for item, mark in restored['meta']['fingerprints'].items():
                if item in restored and fingerprint(restored[item]) != mark:
                    raise ValueError(f'{item} is not what was saved: a bit was flipped on the disk')
            return step, restored
        except Exception as error:
            # Orbax and TensorStore raise whatever the damage happens to hit.
            reason = one_line(error)
            log.warning('checkpoint %s cannot be read (%s)', manager.directory / str(step), reason)
    what = f'none of the checkpoints can be read ({reason})' if steps else 'no checkpoint'
    raise UserError(f'{manager.directory}: {what}')


@jax.jit
def _fingerprint(tree: Any) -> jax.Array:
    def one(x: jax.Array) -> jax.Array:
        kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)
        bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, kind)
        bits = bits.astype(jnp.uint32).ravel()
        # Odd weights: no flip of a single bit goes unseen, nor do two entries that changed places.
        return (bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    parts = [one(x) for x in jax.tree.leaves(tree)]
    return (jnp.stack(parts) * (2 * jnp.arange(len(parts), dtype=jnp.uint32) + 1)).sum(
        dtype=jnp.uint32
    )


def fingerprint(tree: Any) -> int:
    """32 bits that depend on every bit of the arrays; computed where they lie.

    The files have checksums of their own for their structure, but not for all of their content.
    """
    return int(_fingerprint(tree))


def save_start(directory: Path, policy: Policy) -> None:
    """The policy that a run starts from, saved once: later numbers are relative to it."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory.absolute() / 'start', policy._replace(frozen=()))


def restore_start(directory: Path, abstract: Policy) -> Policy:
    """What `save_start` saved.

    Raises:
      UserError: if it is missing or damaged.
    """
    path = directory.absolute() / 'start'
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(path, abstract)
    except Exception as error:
        reason = one_line(error)
        raise UserError(f'{path}: cannot be read ({reason})') from None


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and types of a tree, with the shardings to restore to."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
