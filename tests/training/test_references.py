"""References of a run: kept as long as a checkpoint needs them, and resumed bit for bit."""

import json
import shutil

import pytest

from sail_jax import runs
from sail_jax.errors import UserError
from sail_jax.sweep import Members
from sail_jax.training import checkpoint, metrics, references, setup
from tests.support.checkpoints import damage, flip_bits, same
from tests.support.saving import (
    KEPT,
    KL,
    REFRESHED,
    make_run,
    reference_steps,
    steps,
    train,
    updates,
)
from tests.support.toy import Point


def test_a_fixed_reference_is_the_start_policy_and_written_once(falling):
    directory = falling[1] / 'checkpoints'
    assert not (directory / 'references').exists()
    saved = json.loads((directory / '4' / 'training' / '_METADATA').read_text())['tree_metadata']
    first = {keys['key_metadata'][0]['key'] for keys in saved.values()}
    assert {'optimizer', 'sampler', 'reference_step'} <= first
    assert 'reference' not in first


def test_references_stay_as_long_as_a_checkpoint_needs_them(refreshed):
    assert steps(refreshed[1]) == [5, 6]
    assert reference_steps(refreshed[1]) == [4, 6]


@pytest.mark.parametrize('first', [3, 4])
def test_a_refreshed_run_resumes_bit_for_bit(refreshed, tmp_path, first):
    run = make_run(KEPT, **REFRESHED)
    train(tmp_path / 'run', updates(run, first))
    result = train(tmp_path / 'run', run, resume=True)
    same(result.policy, refreshed[0].policy)
    rows, whole = (
        metrics.read_rows(path / 'metrics.jsonl') for path in (tmp_path / 'run', refreshed[1])
    )
    assert [row.get('train/kl') for row in rows] == [row.get('train/kl') for row in whole]


@pytest.mark.parametrize(
    'harm', [damage, flip_bits, pytest.param(shutil.rmtree, marks=pytest.mark.slow)]
)
def test_without_its_reference_a_checkpoint_is_damaged(refreshed, tmp_path, caplog, harm):
    path = tmp_path / 'run'
    shutil.copytree(refreshed[1], path)
    harm(path / 'checkpoints' / 'references' / '6')
    result = train(path, make_run(KEPT, **REFRESHED), resume=True)
    assert 'checkpoints/6 cannot be read' in caplog.text
    same(result.policy, refreshed[0].policy)
    assert reference_steps(path) == [4, 6]
    aside = 0 if harm is shutil.rmtree else 1
    assert len(list((path / 'checkpoints').glob('damaged-reference-6-*'))) == aside
    assert len(list((path / 'checkpoints').glob('damaged-6-*'))) == 1


def test_a_reference_of_a_save_that_was_killed_is_taken_anew(refreshed, tmp_path):
    path, run = tmp_path / 'run', make_run(KEPT, **REFRESHED)
    train(path, updates(run, 5))
    directory = path / 'checkpoints' / 'references'
    shutil.copytree(directory / '4', directory / '6')
    (directory / '8.orbax-checkpoint-tmp').mkdir()
    same(train(path, run, resume=True).policy, refreshed[0].policy)
    assert reference_steps(path) == [4, 6]
    with checkpoint.open_manager(path / 'checkpoints') as manager:
        env = runs.make_task(run, env=Point())
        state, _ = checkpoint.restore(manager, setup.Layout.of(Members.of(run), env).state)
    same(state.reference, refreshed[0].policy)


def test_another_start_policy_is_seen_where_it_is_the_reference(falling, tmp_path):
    shutil.copytree(falling[1], tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / 'start')
    references.save_start(tmp_path / 'run' / 'checkpoints', falling[0].policy)
    with pytest.raises(UserError, match='reference is not what was saved'):
        train(tmp_path / 'run', make_run({'metric': f'-{KL}'}), resume=True)


@pytest.mark.slow
def test_a_sweep_with_references_resumes_bit_for_bit(tmp_path):
    # The members' label budgets end at different updates, and with them their refreshes.
    run = make_run(
        KEPT, **REFRESHED, seeds=2, objective={'mixture': {'dpr': 0.5}}, labeller={'max_labels': 30}
    )
    whole = train(tmp_path / 'whole', run)
    train(tmp_path / 'run', updates(run, 3))
    for ours, theirs in zip(train(tmp_path / 'run', run, resume=True), whole, strict=True):
        same(ours.policy, theirs.policy)
    for member, result in zip(('seed-0', 'seed-1'), whole, strict=True):
        same(runs.open_run(tmp_path / 'whole' / member, env=Point())[1], result.policy)
        train(
            tmp_path / 'whole' / member,
            runs.load(tmp_path / 'whole' / member / 'config.yaml'),
            resume=True,
        )
