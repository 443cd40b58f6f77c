"""Orbax checkpoints of a training state.

A checkpoint has three items: `policy`, which is all that evaluation or another run's reference
needs; `training`, the rest of `update.State`; and `meta`, JSON with a schema number.
"""

import logging
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from sail_jax import hosts
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.update import Policy, State

SCHEMA = 2

log = logging.getLogger(__name__)


def open_manager(directory: Path, keep: int | None = None) -> ocp.CheckpointManager:
    """Orbax's manager; saves are asynchronous and atomic, the newest `keep` are kept."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=keep is not None)
    return ocp.CheckpointManager(directory.absolute(), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: State, meta: dict[str, Any]) -> None:
    """Starts a save of the state after `step` updates; returns once the arrays are off the devices.

    What `Policy.frozen` holds is left out: whoever made it can make it again.
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
    step, restored = _restore_newest(manager, args)
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


def restore_policy(directory: Path, abstract: Policy) -> Policy:
    """Only the policy, of the newest readable checkpoint.

    Raises:
      UserError: if there is none.
    """
    with open_manager(directory) as manager:
        args = ocp.args.Composite(
            policy=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        return _restore_newest(manager, args)[1]['policy']


def _training(state: State) -> dict[str, Any]:
    """The rest of the state, without its empty arrays (MJX has some), which Orbax refuses."""
    return jax.tree.map(lambda x: x if x.size else None, _but_policy(state))


def _but_policy(state: State) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != 'policy'}


def _restore_newest(manager: ocp.CheckpointManager, args: ocp.args.Composite) -> tuple[int, Any]:
    steps, reason = sorted(manager.all_steps(), reverse=True), ''
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
