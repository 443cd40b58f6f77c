"""Settings from untrusted places that ask for more than there is: one line, and nothing is made."""

import pytest

import sail_jax
from sail_jax import runs
from sail_jax.cli import main
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun
from sail_jax.language.data import tokens
from sail_jax.language.sft import task as sft_task
from sail_jax.language.sft.config import SftRun
from sail_jax.sweep import Members
from sail_jax.training import devices, setup
from tests.support import small, tiny, tiny_tokenizer
from tests.support.toy import SETTINGS, Point


def refuse(path, message, run=None, **settings):
    run = run or ControlRun.model_validate({**SETTINGS, **settings})
    given = {ControlRun: {'env': Point()}, LanguageRun: {'reward': small.letters}}
    with pytest.raises(UserError, match=message) as caught:
        sail_jax.train(run, path / 'run', **given.get(type(run), {}))
    assert '\n' not in str(caught.value)
    assert not (path / 'run').exists()


def test_batches_and_evaluations_that_no_memory_holds(tmp_path):
    large = {'contexts': 2**20, 'group_size': 256, 'segment_length': 2**20}
    # 2^28 segments of 2^20 observations with two float32 each.
    said = r'a batch of this configuration would take at least 2,\d{3},\d{3} GiB; the devices have'
    refuse(tmp_path, said, rollout=large, env={'episode_length': 2**20})


def test_a_network_that_no_memory_holds(tmp_path):
    said = 'the training state of this configuration would take at least'
    refuse(tmp_path, said, policy={'hidden': [2**16] * 8})


def test_responses_that_no_memory_holds(tmp_path):
    checkpoint = small.checkpoint(tmp_path / 'model')
    prompts = small.data(tmp_path / 'prompts.jsonl')
    run = small.run(
        checkpoint,
        prompts,
        prompts_per_update=2**20,
        group_size=256,
        sampling={'max_tokens': 128},
    )
    refuse(tmp_path, 'a batch of this configuration would take', run)


def test_rows_that_no_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    tokenizer = tiny_tokenizer.write(tmp_path / 'tokenizer')
    size = tokens.load(tokenizer).vocab_size
    sizes = tiny.FAMILIES['qwen1.5'].model_copy(update={'vocab_size': size, 'layers': 2**10})
    settings = {
        'workload': 'sft',
        'prompts_per_update': 2**20,
        'model': {'tokenizer': str(tokenizer), 'architecture': sizes.model_dump()},
        'data': {'path': str(small.data(tmp_path / 'rows.jsonl', pairs=True))},
        'evaluation': {'prompts': 4},
    }
    # 2^20 rows of 32 places, and for each of these 2^10 layers' inputs of 16 float32.
    refuse(tmp_path, 'a batch .* would take at least 2,048 GiB', SftRun.model_validate(settings))
    # In parts it is small.
    optimizer = {'accumulation': 2**20}
    task = sft_task.make(SftRun.model_validate(settings | {'optimizer': optimizer}))
    assert task.batch_bytes() == 32 * 2**10 * 16 * 4


@pytest.mark.parametrize(
    'settings',
    [
        {'rollout': {'contexts': 10**400}},
        {'rollout': {'segment_length': 2**63}},
        {'policy': {'hidden': [10**12]}},
        {'policy': {'hidden': [1] * 65}},
        {'evaluation': {'episodes': 2**40}},
        {'updates_per_dispatch': 2**40},
        {'seeds': 10**400},
        {'optimizer': {'epochs': 3 * 10**9}},
        {'reference': {'refresh_env_steps': 1e18}},
        {'total_env_steps': 10**400},
    ],
)
def test_absurd_numbers_are_out_of_bounds(settings):
    with pytest.raises(ValueError, match=r'less than or equal to|at most'):
        ControlRun.model_validate(settings)


@pytest.mark.parametrize(
    ('settings', 'said'),
    [
        ({'seeds': 64, 'sweep': {'beta': range(1, 99)}}, '6,272 runs side by side; at most 4,096'),
        ({'seed': 2**31 - 2, 'seeds': 3}, 'seeds: 3 from seed 2147483646 on; the largest is'),
    ],
)
def test_more_runs_than_there_can_be(settings, said):
    with pytest.raises(UserError, match=said):
        Members.of(ControlRun.model_validate(settings))
    assert len(Members.of(ControlRun.model_validate({'seed': 2**31 - 2, 'seeds': 2})).each) == 2


def test_lines_that_stand_for_more_than_they_say(tmp_path, capsys):
    lines = ['hidden0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]']
    lines += [f'hidden{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, 12)]
    path = tmp_path / 'bomb.yaml'
    path.write_text('\n'.join([*lines, 'seed: *a11']))
    with pytest.raises(UserError, match=r'not valid YAML: line 2: \*a0: write the value out'):
        runs.load(path)
    assert main(['train', str(path)]) == 2
    assert capsys.readouterr().err.count('\n') == 1


def test_the_size_of_a_state_counts_every_copy():
    run = ControlRun.model_validate(SETTINGS)
    state = setup.Layout.of(Members.of(run), runs.make_task(run, env=Point())).state
    assert devices.size(state.policy) < devices.size(state) < devices.memory()
    hidden = state.policy.params['policy']['params']['hidden_0']['kernel']
    assert devices.size(hidden) == 2 * 8 * 4
