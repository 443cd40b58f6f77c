"""Settings of language runs: documented, read back, and refused in one line."""

import re

import pytest
from pydantic import BaseModel

from sail_jax import configfile, runs
from sail_jax.cli import main
from sail_jax.errors import UserError
from sail_jax.language.config import LanguageRun, check
from sail_jax.language.labels import Labeller
from sail_jax.language.labels import check as check_labeller
from tests.language import small

OFFLINE = {'mixture': {'dpr': 0}}


def make(**settings):
    return small.run('model', 'data.jsonl', **settings)


def fields(model, prefix=''):
    for name, field in model.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f'{prefix}{name}.')


def test_every_setting_is_documented():
    sections = (BaseModel,)
    for name, field in fields(LanguageRun):
        section = isinstance(field.annotation, type) and issubclass(field.annotation, sections)
        assert field.description or section, name


def test_resolved_configuration_reads_back(tmp_path):
    run = make(model={'train': 'lora', 'lora': {'rank': 3}}, evaluation={'split': 'test'})
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run


def test_command_line_reaches_nested_sections():
    arguments = ['--model.train', 'lora', '--model.lora.rank', '3', '--reward.source', 'positivity']
    run = configfile.override(make(), arguments, 'sail-jax', '')
    assert (run.model.train, run.model.lora.rank, run.reward.source) == ('lora', 3, 'positivity')


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'optimizer': {'minibatches': 3}}, 'optimizer.minibatches: 3 does not divide prompts_per'),
        ({'objective': {'mixture': {'dpr': 0, 'dpp': 0.5, 'ddp': 0.5}}}, 'has no gradient'),
        ({'objective': {'mixture': {'dpr': 0.5}}, 'group_size': 3}, 'group_size: 3; rows with'),
        ({'objective': OFFLINE}, 'divergence.states: "policy" needs rows'),
        ({'reward': {'source': 'model'}}, 'reward.path: needed for reward.source: model'),
        ({'reward': {'path': 'x'}}, 'reward.path: not used by reward.source: none'),
        ({'labeller': {'discount': 0.9}}, 'labeller.discount: a response has one reward'),
        ({'labeller': {'skip': 0.1}, 'objective': {'mixture': {'dpr': 0.5}}}, 'labeller.skip'),
        ({'optimizer': {'decay': 'linear', 'warmup_updates': 4}}, 'warmup_updates: 4; the run has'),
        ({'seeds': 2}, 'seeds, sweep: language runs'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        check(make(**settings))
    assert '\n' not in str(caught.value)


def test_a_mixture_with_the_labeller_needs_one():
    nobody = Labeller(None, None)
    with pytest.raises(UserError, match=r'reward.source: none, but the rows of .* dpr'):
        check_labeller(make(), nobody)
    check_labeller(make(objective=OFFLINE), nobody)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp('files')
    small.checkpoint(path / 'm')
    small.data(path / 'prompts.jsonl')
    run = small.run(path / 'm', path / 'prompts.jsonl', reward={'source': 'positivity'})
    configfile.write(run, path / 'run.yaml')
    return path


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--model.path', '/none'], '/none: no such directory'),
        (['--data.path', '/none.jsonl'], '/none.jsonl: No such file'),
        (['--data.max-prompt-tokens', '2'], 'prompts.jsonl:1: prompt: 5 tokens; at most 2'),
        (['--data.max-prompt-tokens', '255'], '255, and responses of 6: .* has 256 positions'),
        (['--evaluation.prompts', '16'], 'evaluation.prompts: 16 to hold out; .* has 16 usable'),
        (['--evaluation.path', '/none.jsonl'], '/none.jsonl: No such file'),
        (['--reward.source', 'none'], 'reward.source: none, but the rows'),
        (['--objective.mixture.dpr', '0.5'], 'prompts.jsonl:1: chosen: missing'),
        (['--reward.source', 'model', '--reward.path', '/none'], '/none: no such directory'),
        (['--sampling.temprature', '1'], 'did you mean sampling.temperature'),
        (['--model.train', 'half'], 'model.train'),
        (['--devices.fsdp', '7'], 'devices: data: auto, fsdp: 7'),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(files, tmp_path, capsys, arguments, message):
    run_dir = tmp_path / 'run'
    assert main(['train', str(files / 'run.yaml'), *arguments, '--run-dir', str(run_dir)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ''
    assert printed.err.count('\n') == 1
    assert re.search(message, printed.err), printed.err
    assert not run_dir.exists()
