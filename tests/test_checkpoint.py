"""What a run keeps: the newest, the best, and the references that they need."""

import json
from pathlib import Path

import pytest

import sail_jax
from sail_jax import checkpoint, metrics, runs
from sail_jax.cli import main
from sail_jax.control import envs
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from tests.control.toy import SETTINGS, Point
from tests.test_trainer import damage, same

KL = 'eval/kl_policy_to_ref'
"""0 at the start and larger from then on."""


def make_run(checkpoints=None, **settings):
    checkpoints = {'every_updates': 2, 'keep': 1, **(checkpoints or {})}
    env = {'name': 'inverted_pendulum', 'episode_length': 20}
    return ControlRun.model_validate(
        {**SETTINGS, 'env': env, 'checkpoints': checkpoints, **settings}
    )


def train(path, run, **kwargs):
    return sail_jax.train(run, path, env=Point(), quiet=True, **kwargs)


def steps(path: Path) -> list[int]:
    return sorted(int(one.name) for one in (path / 'checkpoints').iterdir() if one.name.isdigit())


@pytest.fixture(scope='module')
def falling(tmp_path_factory):
    """A run that is at its best before its first update, by its metric."""
    path = tmp_path_factory.mktemp('falling') / 'run'
    return train(path, make_run({'metric': f'-{KL}'})), path


def test_the_best_is_kept_besides_the_newest(falling):
    result, path = falling
    assert steps(path) == [0, 4]
    same(runs.open_run(path, env=Point())[1], result.policy)
    same(runs.open_run(path, best=True, env=Point())[1], result.start)
    _, best = runs.evaluate(path, best=True, env=Point())
    assert best['kl_policy_to_ref'] == 0


def test_resume_goes_on_from_the_newest(falling, tmp_path):
    result, _ = falling
    run = make_run({'metric': f'-{KL}'})
    half = run.model_copy(update={'total_env_steps': 2 * run.env_steps_per_update})
    train(tmp_path / 'run', half)
    same(train(tmp_path / 'run', run, resume=True).policy, result.policy)
    assert steps(tmp_path / 'run') == [0, 4]


def test_a_better_evaluation_is_saved_at_once(tmp_path):
    settings = {'updates_per_dispatch': 1, 'evaluation': {'episodes': 4, 'every_updates': 1}}
    run = make_run({'metric': KL, 'every_updates': 100, 'keep_best': 2}, **settings)
    train(tmp_path / 'run', run)
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    ranked = sorted(range(5), key=lambda step: rows[step][KL])
    assert steps(tmp_path / 'run') == sorted({*ranked[-2:], 4})


def test_without_best_only_the_newest_are_kept(tmp_path):
    train(tmp_path / 'run', make_run({'keep_best': 0}))
    assert steps(tmp_path / 'run') == [4]
    with pytest.raises(UserError, match=r'no checkpoint has a score; .*keep_best above 0'):
        runs.open_run(tmp_path / 'run', best=True, env=Point())


def test_by_default_the_return_decides(tmp_path):
    train(tmp_path / 'run', make_run())
    rows = metrics.read_rows(tmp_path / 'run' / 'metrics.jsonl')
    returns = {row['step']: row['eval/return'] for row in rows if 'eval/return' in row}
    with checkpoint.open_manager(tmp_path / 'run' / 'checkpoints') as manager:
        found = checkpoint.scores(manager)
    best = max(returns, key=returns.get)
    assert found == {step: returns[step] for step in {best, 4}}


def test_a_metric_that_no_evaluation_has_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r'checkpoints\.metric: eval/retrun; .*eval/return'):
        train(tmp_path / 'run', make_run({'metric': 'eval/retrun'}))


@pytest.mark.parametrize('text', ['', '{"sco', '[1]', '{"score": "x"}'])
def test_a_damaged_score_is_no_score(falling, tmp_path, text):
    run = make_run({'metric': f'-{KL}'})
    half = run.model_copy(update={'total_env_steps': 2 * run.env_steps_per_update})
    train(tmp_path / 'run', half)
    (tmp_path / 'run' / 'checkpoints' / '0' / 'metrics' / 'metrics').write_text(text)
    same(train(tmp_path / 'run', run, resume=True).policy, falling[0].policy)


def test_of_a_damaged_best_checkpoint_the_next_best_is_taken(falling, tmp_path, caplog):
    result = train(tmp_path / 'run', make_run({'metric': f'-{KL}'}))
    damage(tmp_path / 'run' / 'checkpoints' / '0' / 'policy')
    same(runs.open_run(tmp_path / 'run', best=True, env=Point())[1], result.policy)
    assert 'checkpoints/0 cannot be read' in caplog.text


def test_the_command_line_and_another_run_take_the_best(falling, tmp_path, monkeypatch, capsys):
    result, path = falling
    monkeypatch.setattr(envs, 'make', lambda _: Point())
    assert main(['evaluate', str(path), '--best']) == 0
    assert 'best checkpoint' in capsys.readouterr().out
    for best, expected in ((False, result.policy), (True, result.start)):
        reference = {'source': 'run', 'path': str(path), 'best': best}
        run = make_run(reference=reference, seed=5, total_env_steps=1)
        same(train(tmp_path / str(best), run).start, expected)
    with pytest.raises(UserError, match=r'reference\.best: not used by'):
        train(tmp_path / 'none', make_run(reference={'best': True}))


def test_a_language_model_has_no_best(tmp_path, capsys):
    (tmp_path / 'config.json').write_text(json.dumps({}))
    assert main(['generate', str(tmp_path), 'hello', '--best']) == 2
    assert '--best' in capsys.readouterr().err
