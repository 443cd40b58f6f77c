"""Orbax checkpoints of a training state.

A checkpoint has three items: `policy`, which is all that evaluation or another run's reference
needs; `training`, the rest of `types.State` but for the reference and what is shared; and `meta`,
JSON with a schema number. The reference is saved on its own, see `training.references`.
"""

import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from sail_jax import config, configfile, files
from sail_jax.core.types import Policy, State
from sail_jax.errors import TrainingFailed, UserError, one_line
from sail_jax.training import hosts, integrity, platform, quiet, references
from sail_jax.training.listing import saved_steps

SCHEMA = 5

T = TypeVar('T')

log = logging.getLogger(__name__)


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> Any:
        """None also where the file is damaged: no reason not to open the directory."""
        try:
            metrics: Any = super().metrics(step)
            return integrity.verify_score(metrics)
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


def scores(manager: ocp.CheckpointManager) -> dict[int, float]:
    """Of the checkpoints that were evaluated, by step."""
    there = saved_steps(Path(manager.directory))
    metrics_of = {step: manager.metrics(step) for step in manager.all_steps() if step in there}
    return {
        step: metrics['score']
        for step, metrics in metrics_of.items()
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
    marks = {'policy': integrity.fingerprint(policy), 'training': integrity.fingerprint(training)}
    if jax.tree.leaves(state.reference):
        marks['reference'] = integrity.fingerprint(state.reference)
        manager.wait_until_finished()  # What is on the disk now stays there until the next save.
        references.save(Path(manager.directory), state)
    meta = {**meta, 'schema': SCHEMA, 'fingerprints': marks}
    args = ocp.args.Composite(
        policy=ocp.args.StandardSave(policy),
        training=ocp.args.StandardSave(training),
        meta=ocp.args.JsonSave({**meta, 'checksum': integrity.checksum(meta)}),
    )
    if not quiet.saving(lambda: manager.save(step, args=args, metrics=_metrics(score))):
        raise TrainingFailed(f'{manager.directory}: update {step} was not saved')


def rate(directory: Path, step: int, score: float) -> None:
    """Gives a checkpoint another score, which managers see once they reload."""
    path = directory / str(step) / 'metrics' / 'metrics'
    part = path.with_suffix('.part')
    part.write_text(json.dumps(_metrics(score)), encoding='utf-8')
    part.replace(path)


def _metrics(score: float) -> dict[str, float]:
    return {'score': score, 'checksum': integrity.checksum({'score': score})}


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

    read = partial(_read_state, manager, abstract, settings or {})
    step, (restored, reference) = _first_readable(manager, _newest_first(manager), read)
    damaged = [later for later in _newest_first(manager) if later > step]
    reference_step = int(np.max(restored['training']['reference_step']))

    def set_aside() -> None:
        with files.writing(directory, files.ROOM):
            references.set_aside(directory, damaged, reference_step)

    hosts.on_main(set_aside)
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


def _read_state(
    manager: ocp.CheckpointManager, abstract: State, settings: dict[str, Any], step: int
) -> tuple[Any, Policy]:
    """A checkpoint's items, and its reference."""
    directory = Path(manager.directory)
    files.require_regular(directory / str(step))
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    meta = integrity.verify_meta(manager.restore(step, args=args)['meta'], SCHEMA)
    if meta['schema'] != SCHEMA:
        raise UserError(
            f'{directory}/{step}: sail-jax {meta["versions"]["sail-jax"]} wrote it with schema '
            f'{meta["schema"]}, this version resumes {SCHEMA}; resume it with that version, or '
            'evaluate and export what it has'
        )
    _refuse_another_runs(directory / str(step), meta, settings)
    platform.require_same(f'{directory}/{step}', meta.get('jax', {}))
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
        path = references.path_of(directory, restored['training'])
        reference = references.read(path, reference)
        integrity.verify(restored['meta'], 'reference', reference)
    return restored, reference


def restore_policy(directory: Path, abstract: Policy, best: bool = False) -> Policy:
    """Only the policy, of the newest readable checkpoint, or of the one with the best score.

    Raises:
      UserError: if there is none.
    """

    def read(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], Policy]:
        saved = references.as_saved(directory / str(step) / 'policy', abstract)
        args = ocp.args.Composite(
            policy=ocp.args.StandardRestore(saved), meta=ocp.args.JsonRestore()
        )
        restored = _read(manager, step, args)
        return restored['meta'], Policy(*restored['policy'][:2])

    while True:
        with files.reading(directory), open_manager(directory) as manager:
            steps = _newest_first(manager)
            if best:
                by_step = scores(manager)
                steps = sorted(by_step, key=lambda step: (by_step[step], step), reverse=True)
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


def restore_rest(directory: Path, abstract: State) -> dict[str, Any]:
    """All of the newest readable checkpoint but its policies, by the fields of `State`; nothing is
    set aside. Empty arrays are None.

    Raises:
      UserError: if there is none.
    """

    def read(step: int) -> dict[str, Any]:
        args = ocp.args.Composite(
            training=ocp.args.StandardRestore(_training(abstract)), meta=ocp.args.JsonRestore()
        )
        return _read(manager, step, args)['training']

    with files.reading(directory), open_manager(directory) as manager:
        return _first_readable(manager, _newest_first(manager), read)[1]


def require_own(directory: Path, settings: dict[str, Any]) -> None:
    """Looks at the newest checkpoint's settings before anything is read that they decide the shape
    of; what is damaged is left to `restore`.

    Raises:
      UserError: they are another run's than `settings`, or JAX's are others than they were.
    """
    for step in sorted(saved_steps(directory), reverse=True):
        path = directory / str(step)
        try:
            meta = json.loads(files.read(path / 'meta' / 'metadata', 2**24))
            integrity.verify_meta(meta, SCHEMA)
        except (UserError, ValueError, TypeError, LookupError, AttributeError):
            continue
        _refuse_another_runs(path, meta, settings)
        platform.require_same(str(path), meta.get('jax', {}))
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


def _newest_first(manager: ocp.CheckpointManager) -> list[int]:
    """Also those that have lost their metadata, which Orbax passes over."""
    return sorted(saved_steps(Path(manager.directory)), reverse=True)


def _read(manager: ocp.CheckpointManager, step: int, args: ocp.args.Composite) -> Any:
    files.require_regular(Path(manager.directory) / str(step))
    restored = manager.restore(step, args=args)
    meta = integrity.verify_meta(restored['meta'], SCHEMA)
    for item in meta['fingerprints']:
        if item in restored:
            try:
                integrity.verify(meta, item, restored[item])
            except ValueError:  # Arrays of 64 bits are read as 32 where JAX has no others.
                saved = {'jax_enable_x64': meta.get('jax', {}).get('jax_enable_x64', False)}
                platform.require_same(f'{manager.directory}/{step}', saved)
                raise
    return restored


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


def abstract_like(tree: Any, shardings: Any) -> Any:
    """Shapes and types of a tree, with the shardings to restore to."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )


def origin(run: config.Trained) -> dict[str, Any]:
    """What every checkpoint says of where it is from."""
    return {
        'config': run.model_dump(mode='json'),
        'versions': versions(),
        'jax': platform.numbers(),
    }


def versions() -> dict[str, str]:
    """What a checkpoint was written with."""
    names = ('sail-jax', 'jax', 'flax', 'optax', 'orbax-checkpoint', 'brax')
    return {
        'python': '.'.join(map(str, sys.version_info[:3])),
        **{name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # A clone that is on the path, and not installed.
        return 'not installed'
