"""Orbax checkpoints of a training state.

A checkpoint has three items: `policy`, which is all that evaluation or another run's reference
needs; `training`, the rest of `update.State` but for the reference and what is shared; and `meta`,
JSON with a schema number. The reference is constant between refreshes and saved once for each,
before the first checkpoint that needs it: `references/STEP` is what was taken after STEP updates,
and a checkpoint's is the last of those up to its own step. What was taken after none is `start`,
the start policy.
"""

import json
import logging
import math
import platform
import shutil
import time
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sail_jax import config, configfile, files
from sail_jax.core.update import Policy, State
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.training import hosts, quiet

SCHEMA = 5
UNFINISHED = '.orbax-checkpoint-tmp'
"""In the name of a save until it is whole."""

T = TypeVar('T')

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
    quiet.silence_failed_saves()
    options = ocp.CheckpointManagerOptions(create=False)
    if settings is not None:
        by_score = lambda metrics: metrics['score']
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


def close(manager: ocp.CheckpointManager) -> None:
    """Ends a manager's threads, whatever its last save has come to.

    Each part of it raises once what it has kept, and keeps what comes after it from being closed.
    """
    for _ in range(5):
        try:
            manager.close()
            return
        except Exception:
            if jax.process_count() > 1:
                raise


def drop_unfinished(directory: Path) -> None:
    """Deletes what failed and killed saves have left, which takes room and is read by nobody."""
    for path in (directory, directory / 'references'):
        for left in path.glob(f'*{UNFINISHED}*'):
            shutil.rmtree(left, ignore_errors=True)


def has_begun(directory: Path) -> bool:
    """Whether a run has saved anything there; the first thing is its start policy."""
    return (directory / 'start').exists() or bool(saved_steps(directory))


def scores(manager: ocp.CheckpointManager) -> dict[int, float]:
    """Of the checkpoints that were evaluated, by step."""
    there = saved_steps(Path(manager.directory))
    found = {step: manager.metrics(step) for step in manager.all_steps() if step in there}
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

    `State.shared` is left out: whoever made it can make it again. A reference that was not saved
    before is waited for.

    Args:
      score: more is better; -inf where there was no evaluation.
    """
    if manager.latest_step() == step:
        return
    policy, training = state.policy, _training(state)
    marks = {'policy': fingerprint(policy), 'training': fingerprint(training)}
    if jax.tree.leaves(state.reference):
        marks['reference'] = fingerprint(state.reference)
        manager.wait_until_finished()  # What is on the disk now stays there until the next save.
        _save_reference(Path(manager.directory), state)
    meta = {**meta, 'schema': SCHEMA, 'fingerprints': marks}
    args = ocp.args.Composite(
        policy=ocp.args.StandardSave(policy),
        training=ocp.args.StandardSave(training),
        meta=ocp.args.JsonSave({**meta, 'checksum': _checksum(meta)}),
    )
    if not quiet.saving(lambda: manager.save(step, args=args, metrics={'score': score})):
        raise TrainingFailed(f'{manager.directory}: update {step} was not saved')


def rate(directory: Path, step: int, score: float) -> None:
    """Gives a checkpoint another score, which managers see once they reload."""
    path = directory / str(step) / 'metrics' / 'metrics'
    part = path.with_suffix('.part')
    part.write_text(json.dumps({'score': score}))
    part.replace(path)


def restore(
    manager: ocp.CheckpointManager, abstract: State, settings: dict[str, Any] | None = None
) -> tuple[State, dict[str, Any]]:
    """The newest readable checkpoint.

    Newer ones that cannot be read are named and set aside as `damaged-STEP`, so that their updates
    can be saved again.

    Args:
      abstract: shapes, types and shardings to restore to.
      settings: of the run, as JSON has them.

    Raises:
      UserError: if there is none; or the newest is another run's, and then nothing was touched.
    """
    directory = Path(manager.directory)

    def read(step: int) -> tuple[Any, Policy]:
        files.require_regular(directory / str(step))
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        meta = _verify_meta(manager.restore(step, args=args)['meta'])
        if meta['schema'] != SCHEMA:
            raise UserError(
                f'{directory}/{step}: sail-jax {meta["versions"]["sail-jax"]} wrote it with schema '
                f'{meta["schema"]}, this version resumes {SCHEMA}; resume it with that version, or '
                'evaluate and export what it has'
            )
        _refuse_another_runs(directory / str(step), meta, settings or {})
        args = ocp.args.Composite(
            policy=ocp.args.StandardRestore(abstract.policy),
            training=ocp.args.StandardRestore(_training(abstract)),
            meta=ocp.args.JsonRestore(),
        )
        restored, reference = _read(manager, step, args), abstract.reference
        if (updates := int(np.max(restored['training']['step']))) != step:
            raise UserError(
                f'{directory}/{step}: holds the state after {updates} updates; rename it to '
                f'{updates}, or move it away'
            )
        if jax.tree.leaves(reference):
            path = _reference_path(directory, restored['training'])
            reference = _read_policy(path, reference)
            _verify(restored['meta'], 'reference', reference)
        return restored, reference

    step, (restored, reference) = _first_readable(manager, _newest_first(manager), read)
    damaged = [later for later in _newest_first(manager) if later > step]
    if hosts.is_main():
        _set_aside(directory, damaged, int(np.max(restored['training']['reference_step'])))
    if hosts.any_process(bool(damaged)):
        manager.reload()
    training = jax.tree.map(
        lambda x, saved: saved if x.size else jnp.zeros(x.shape, x.dtype, device=x.sharding),
        _rest(abstract),
        restored['training'],
    )
    state = State(
        policy=restored['policy'], reference=reference, shared=abstract.shared, **training
    )
    return state, restored['meta']


def restore_policy(directory: Path, abstract: Policy, best: bool = False) -> Policy:
    """Only the policy, of the newest readable checkpoint, or of the one with the best score.

    Raises:
      UserError: if there is none.
    """

    def read(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], Policy]:
        saved = _as_saved(directory / str(step) / 'policy', abstract)
        args = ocp.args.Composite(
            policy=ocp.args.StandardRestore(saved), meta=ocp.args.JsonRestore()
        )
        restored = _read(manager, step, args)
        return restored['meta'], Policy(*restored['policy'][:2])

    while True:
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
            try:
                step, (meta, policy) = _first_readable(manager, steps, partial(read, manager))
            except UserError:
                if set(steps) <= set(saved_steps(directory)):
                    raise
                continue  # A run that is under way has put others in their place.
        _warn_of_another_run(directory, step, meta)
        return policy


def require_own(directory: Path, settings: dict[str, Any]) -> None:
    """Looks at the newest checkpoint's settings before anything is read that they decide the shape
    of; what is damaged is left to `restore`.

    Raises:
      UserError: they are another run's than `settings`.
    """
    for step in sorted(saved_steps(directory), reverse=True):
        path = directory / str(step)
        try:
            meta = json.loads(files.read(path / 'meta' / 'metadata', 2**24))
            _verify_meta(meta)
        except (UserError, ValueError, TypeError, LookupError, AttributeError):
            continue
        _refuse_another_runs(path, meta, settings)
        break


def _refuse_another_runs(path: Path, meta: dict[str, Any], settings: dict[str, Any]) -> None:
    if other := configfile.another_runs(meta.get('config', {}), settings):
        raise UserError(
            f"{path}: another run's checkpoint ({other}); move it out of {path.parent} to go on "
            'with this one, or put its config.yaml back'
        )


def _warn_of_another_run(directory: Path, step: int, meta: dict[str, Any]) -> None:
    """Its settings may also have been edited; what is only read need not be refused."""
    path = directory.parent / 'config.yaml'
    if path.exists():
        settings, _ = configfile.read_yaml(path)
        if other := configfile.another_runs(meta.get('config', {}), settings):
            log.warning(
                "checkpoint %s is not of its directory's run: %s", directory / str(step), other
            )


def _training(state: State) -> dict[str, Any]:
    """The rest of the state, without its empty arrays (MJX has some), which Orbax refuses."""
    return jax.tree.map(lambda x: x if x.size else None, _rest(state))


def _rest(state: State) -> dict[str, Any]:
    apart = ('policy', 'reference', 'shared')
    return {name: value for name, value in state._asdict().items() if name not in apart}


def _reference_path(directory: Path, training: dict[str, Any]) -> Path:
    # Members of a sweep have one step each; whenever one of them is refreshed, the latest changes.
    step = int(np.max(training['reference_step']))
    return directory / 'references' / str(step) if step else directory / 'start'


def _save_reference(directory: Path, state: State) -> None:
    """Unless it is there; those that no checkpoint needs any more are deleted."""
    path = _reference_path(directory, state._asdict())
    if hosts.is_main():
        _drop_references(directory, path.name)
    if not hosts.any_process(hosts.is_main() and path.exists()):
        _save_policy(path, state.reference)


def saved_steps(directory: Path) -> list[int]:
    """Names of what was saved entirely; Orbax renames a directory once it is."""
    found = directory.iterdir() if directory.is_dir() else []
    return [int(path.name) for path in found if _is_step(path.name)]


def _is_step(name: str) -> bool:
    """`08` and the like are names that somebody else gave."""
    return name.isdecimal() and len(name) <= 10 and name == str(int(name)) and int(name) < 2**31


def refuse_odd_names(directory: Path) -> None:
    """Orbax takes any digits for a step, and would keep, rename and delete by the number.

    Raises:
      UserError: naming a checkpoint, or a reference, whose name no run gave it.
    """
    for parent in (directory, directory / 'references'):
        for path in sorted(parent.iterdir()) if parent.is_dir() else []:
            if path.name.isdigit() and not _is_step(path.name):
                raise UserError(
                    f'{path}: no name that a run gives; a checkpoint is named by its updates, '
                    'in plain digits: rename it, or move it away'
                )


def _needed(directory: Path, step: int) -> int:
    """The reference of a checkpoint."""
    references = saved_steps(directory / 'references')
    return max((taken for taken in references if taken <= step), default=0)


def _drop_references(directory: Path, current: str) -> None:
    kept = {current, *(str(_needed(directory, step)) for step in saved_steps(directory))}
    for path in (directory / 'references').glob('*'):
        if path.name not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _set_aside(directory: Path, damaged: Sequence[int], reference: int) -> None:
    """Renames damaged checkpoints and their references, as far as they are later than what the run
    goes on with; it takes later references anew."""
    now = time.time_ns()
    for taken in {_needed(directory, step) for step in damaged}:
        if taken > reference:
            path = directory / 'references' / str(taken)
            path.rename(directory / f'damaged-reference-{taken}-{now}')
    for step in damaged:
        (directory / str(step)).rename(directory / f'damaged-{step}-{now}')
    _drop_references(directory, str(reference))


def _newest_first(manager: ocp.CheckpointManager) -> list[int]:
    """Also those that have lost their metadata, which Orbax passes over."""
    return sorted(saved_steps(Path(manager.directory)), reverse=True)


def _read(manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> Any:
    files.require_regular(Path(manager.directory) / str(step))
    restored = manager.restore(step, args=args)
    for item in _verify_meta(restored['meta'])['fingerprints']:
        if item in restored:
            _verify(restored['meta'], item, restored[item])
    return restored


def _verify(meta: dict[str, Any], item: str, tree: Any) -> None:
    if fingerprint(tree) != meta['fingerprints'][item]:
        raise ValueError(f'{item} is not what was saved: a flipped bit on the disk, or another one')


def _checksum(meta: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(meta, sort_keys=True).encode())


def _verify_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The same, if it is what was saved; older schemas have no checksum."""
    content = {key: value for key, value in meta.items() if key != 'checksum'}
    known = 'checksum' in meta or meta['schema'] == SCHEMA
    if known and _checksum(content) != meta.get('checksum'):
        raise ValueError('meta is not what was saved: a bit was flipped on the disk')
    return meta


def _first_readable(
    manager: ocp.CheckpointManager, steps: Sequence[int], read: Callable[[int], T]
) -> tuple[int, T]:
    reason = ''
    for step in steps:
        try:
            return step, read(step)
        except UserError:
            raise
        except Exception as error:
            if not (Path(manager.directory) / str(step)).exists():
                continue  # Its run has deleted it.
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
    _save_policy(directory / 'start', policy)


def restore_start(directory: Path, abstract: Policy) -> Policy:
    """What `save_start` saved.

    Raises:
      UserError: if it is missing or damaged.
    """
    path = directory / 'start'
    try:
        return _read_policy(path, abstract)
    except Exception as error:
        reason = one_line(error)
        raise UserError(f'{path}: cannot be read ({reason})') from None


def _save_policy(path: Path, policy: Policy) -> None:
    def save() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), policy)

    quiet.saving(save)


def _read_policy(path: Path, abstract: Policy) -> Policy:
    quiet.silence_failed_saves()
    with ocp.StandardCheckpointer() as checkpointer:
        return Policy(*checkpointer.restore(path.absolute(), _as_saved(path, abstract))[:2])


class _Policy4(NamedTuple):
    """A policy on the disk, up to schema 4."""

    params: Any
    fixed: Any
    """`Policy.statistics`."""
    frozen: tuple[()] = ()


def _as_saved(path: Path, abstract: Policy) -> Policy | _Policy4:
    """The policy to restore, in the parts that it was saved in."""
    files.require_regular(path)
    parts = ocp.StandardCheckpointHandler().metadata(path.absolute())
    return _Policy4(*abstract) if 'fixed' in parts else abstract


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and types of a tree, with the shardings to restore to."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def origin(run: config.Trained) -> dict[str, Any]:
    """What every checkpoint says of where it is from."""
    return {'config': run.model_dump(mode='json'), 'versions': versions()}


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    names = ('sail-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'brax')
    return {'python': platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # A clone that is on the path, and not installed.
        return 'not installed'
