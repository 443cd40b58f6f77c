"""A run directory: who claims it, what is checked before a run goes on, what is kept aside."""

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from sail_jax import config, configfile, files
from sail_jax.errors import UserError
from sail_jax.files import ROOM, leads_out, writing
from sail_jax.sweep import Members
from sail_jax.terminal import say
from sail_jax.training import hosts, listing, lock
from sail_jax.training.rows import scan
from sail_jax.training.task import Task

SHARED_TRIES = 10
"""Seconds for what one host writes to be seen by the others."""


@contextlib.contextmanager
def claimed(
    run: config.Settings, run_dir: Path, resume: bool, in_turn: bool = False
) -> Iterator[None]:
    """`claim_run_dir`, with a lock that keeps other processes from the directory meanwhile.

    Args:
      in_turn: of a sweep whose members are trained one after the other, and claim their own.

    Raises:
      UserError: as of `claim_run_dir`, in all processes of the run; another run is at work there; a
        member of a sweep went on alone; the disk is not one that all processes see.
    """
    with contextlib.ExitStack() as exits:

        def claim() -> None:
            files.check_checkpoint_path(run_dir)
            if resume:
                _require_a_run(run_dir)
            else:
                _make_directory(run_dir)
            exits.enter_context(lock.held(run_dir))
            claim_run_dir(run, run_dir, resume)
            if resume and not in_turn:
                _refuse_members_ahead(run, run_dir)

        hosts.on_main(claim)
        _require_shared(run_dir, resume)
        yield


def _require_shared(run_dir: Path, resume: bool) -> None:
    """Every process sees what process 0 writes; where one does not, checkpoints would never end.

    Raises:
      UserError: in all processes; a new run's directory is free for the corrected one.
    """
    if jax.process_count() == 1:
        return
    # A name that no disk of a host's own has, and that no cache of names remembers as missing.
    mark = run_dir / f'seen-{hosts.gather_text(secrets.token_hex(4))[0]}.part'

    def see() -> None:
        for _ in range(SHARED_TRIES):
            if files.exists(mark):
                return
            time.sleep(1)
        raise UserError(
            f'{run_dir}: process {jax.process_index()} does not see there what process 0 has '
            'written; --run-dir must lie on a disk that all hosts share'
        )

    try:
        hosts.on_main(lambda: _touch(mark))
        hosts.together(see)
    except UserError:
        if hosts.is_main() and not resume:
            (run_dir / 'config.yaml').unlink()
        raise
    finally:
        if hosts.is_main():
            mark.unlink(missing_ok=True)


def _touch(path: Path) -> None:
    with writing(path, ROOM):
        path.touch()


def claim_run_dir(run: config.Settings, run_dir: Path, resume: bool) -> None:
    """Makes a directory with the configuration of a new run, or checks that a run can go on.

    Raises:
      UserError: the directory exists (without resume), is missing or not writable, belongs to
        another configuration, has a link that leads out of it.
    """
    if resume:
        path = _require_a_run(run_dir)
        _refuse_links_out(run_dir)
        listing.refuse_odd_names(run_dir / 'checkpoints')
        data, node = configfile.read_yaml(path)
        begun = configfile.validate(type(run), data, path, node)
        free = configfile.free_on_resume(configfile.flatten(run))
        changed = configfile.differences(run, begun, ignore=free)
        if changed:
            raise UserError(
                f'{run_dir}: --resume with another configuration: {changed[0]}; a run may only be '
                'prolonged, and logged or kept elsewhere: train with it in another --run-dir'
            )
        _require_writable(run_dir)
        return
    _make_directory(run_dir)
    try:
        # All that a run leaves which was killed before it had its configuration.
        part = run_dir / 'config.part'
        if any(path not in (part, run_dir / lock.NAME) for path in run_dir.iterdir()):
            raise UserError(f'{run_dir}: exists already; use --resume, or another --run-dir')
        _require_writable(run_dir)
        part.unlink(missing_ok=True)  # It may be a link, which a write would follow.
    except OSError as error:
        raise UserError(f'{run_dir}: {error.strerror}') from None
    configfile.write(run, run_dir / 'config.yaml')


def _refuse_members_ahead(run: config.Settings, run_dir: Path) -> None:
    """A sweep that goes on writes its members' directories anew, from where it is itself."""
    step = max(listing.saved_steps(run_dir / 'checkpoints'), default=0)
    for directory in Members.of(run).directories(run_dir):
        ahead = max(listing.saved_steps(directory / 'checkpoints'), default=0)
        if ahead > step:
            raise UserError(
                f'{directory}: went on alone to update {ahead}, and the sweep is at update {step}, '
                'from which --resume would write it anew; to keep it, copy that directory '
                f'elsewhere, then delete {directory}/checkpoints'
            )


def hold_members(members: Members, run_dir: Path, exits: contextlib.ExitStack) -> None:
    """Each member's directory is that of a run, which could be resumed alone."""
    for directory in members.directories(run_dir) if members.sweep else []:
        _make_directory(directory)
        exits.enter_context(lock.held(directory))


def _require_a_run(run_dir: Path) -> Path:
    """The configuration of the run that is there."""
    path = run_dir / 'config.yaml'
    if not files.exists(path):
        raise UserError(f'{run_dir}: no run to resume (no config.yaml)')
    return path


def _make_directory(run_dir: Path) -> None:
    try:
        files.make_directory(run_dir)
    except OSError as error:
        raise UserError(f'{run_dir}: {error.strerror}') from None


def _refuse_links_out(run_dir: Path) -> None:
    """What a run writes, renames and deletes must lie in its directory, wherever that is from."""

    def stop(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise UserError(f'{error.filename}: {error.strerror}')

    for parent, children, names in os.walk(run_dir, onerror=stop):
        for entry in (Path(parent, name) for name in (*children, *names)):
            try:
                mode = entry.lstat().st_mode
            except FileNotFoundError:  # SQLite's files of a page that is open come and go.
                continue
            if not (stat.S_ISLNK(mode) or stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise UserError(f'{entry}: not a regular file')
            try:
                out = stat.S_ISLNK(mode) and leads_out(entry, run_dir)
            except OSError:  # Links in a circle.
                out = True
            if out:
                raise UserError(
                    f'{entry}: a link that leads out of {run_dir}, where --resume must not write; '
                    'put what it leads to in its place'
                )
        if Path(parent).name == 'wandb' and Path(parent) != run_dir:
            # Earlier sessions of W&B link to their logs in its cache, and are not written again.
            children.clear()


def _require_writable(run_dir: Path) -> None:
    if not os.access(run_dir, os.W_OK):
        raise UserError(f'{run_dir}: not writable')


def updated(members: Members, run_dir: Path) -> list[Path]:
    """The `metrics.jsonl` in which there are updates."""
    paths = [parent / 'metrics.jsonl' for parent in members.directories(run_dir)]
    return [p for p in paths if p.exists() and any(row['step'] > 0 for row in scan(p).rows)]


def keep_rows_aside(members: Members, run_dir: Path) -> None:
    """Of a run that begins again, since none of its checkpoints was written."""
    paths, now = updated(members, run_dir), time.time_ns()
    for path in paths:
        with writing(path, ROOM):
            path.rename(path.with_name(f'before-{now}-{path.name}'))
    if paths:
        say(
            f'{run_dir}: no checkpoint had been written; the run begins again from its start '
            f'policy, and its rows so far are before-{now}-metrics.jsonl'
        )


def require_same_files(run_dir: Path, before: dict[str, str], now: dict[str, str]) -> None:
    if changed := [name for name in before.keys() & now.keys() if before[name] != now[name]]:
        more = f' ({len(changed)} files changed)' if len(changed) > 1 else ''
        raise UserError(
            f'{run_dir}: {min(changed)} is not what the run has read so far{more}; put that back, '
            'or begin a new run'
        )


def require_not_shortened(task: Task, step: int, run_dir: Path) -> None:
    """A run has been where it is, whatever its length is said to be now."""
    if step - task.updates_per_dispatch >= task.updates:
        done = step * task.units_per_update
        raise UserError(
            f'{run_dir}: --resume with total_{task.unit} below the {done} that are done; '
            'it prolongs a run, and does not shorten it'
        )
