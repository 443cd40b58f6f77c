"""Settings of language runs: documented, read back, and refused in one line."""

import datetime
import json
import re

import pytest
from pydantic import BaseModel

from sail_jax import configfile, runs
from sail_jax.cli import main
from sail_jax.errors import UserError
from sail_jax.language.adapter import Lora
from sail_jax.language.config import LanguageRun, check
from sail_jax.language.data import template
from sail_jax.language.reward.labels import Rater
from sail_jax.language.reward.labels import check as check_labeller
from tests.support import small

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


def test_all_linear_is_a_word_in_a_file_and_on_the_command_line(tmp_path):
    run = make(model={'train': 'lora', 'lora': {'targets': 'all-linear'}})
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run
    arguments = ['--model.train', 'lora', '--model.lora.targets', 'all-linear']
    assert configfile.override(make(), arguments, 'sail-jax', '') == run


@pytest.mark.parametrize('key', Lora.model_fields)
def test_an_adapter_that_is_not_trained_is_refused(key):
    other = {'rank': 8, 'alpha': 32, 'targets': 'all-linear', 'dropout': 0.1, 'layers': 1}
    with pytest.raises(UserError, match=f'^model.lora.{key}: not used by model.train: full; did'):
        check(make(model={'lora': {key: other[key]}}))


def test_addresses_of_the_hub_are_written_as_they_were(tmp_path):
    reward = {'source': 'model', 'path': 'hf://me/judge'}
    run = make(model={'path': 'hf://me/base@v1'}, reward=reward, data={'path': 'hf://me/pairs'})
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run
    written = (tmp_path / 'config.yaml').read_text()
    assert [written.count(f'path: hf://me/{name}') for name in ('base@v1', 'judge', 'pairs')] == [
        1,
        1,
        1,
    ]
    again = configfile.override(make(), ['--model.path', 'hf://me/base@v1'], 'sail-jax', '')
    assert again.model == run.model


def test_tools_are_a_list_in_a_file_and_json_on_the_command_line(tmp_path):
    tools = [{'type': 'function', 'function': {'name': 'é'}}]
    run = make(model={'chat_template_kwargs': {'tools': tools, 'quiet': True}})
    configfile.write(run, tmp_path / 'config.yaml')
    assert runs.load(tmp_path / 'config.yaml') == run
    assert template.with_lists(run.model.chat_template_kwargs) == {'tools': tools, 'quiet': True}
    again = ['--model.chat-template-kwargs', 'tools', json.dumps(tools), 'quiet', 'true']
    assert configfile.override(make(), again, 'sail-jax', '').model.chat_template_kwargs.keys() == {
        'tools',
        'quiet',
    }
    assert configfile.override(run, ['--seed', '3'], 'sail-jax', '').model == run.model
    for wrong in ('[1', '[1]', 3, '{}'):
        with pytest.raises(UserError, match=r'^chat_template_kwargs: tools: expected a list of'):
            template.with_lists({'tools': wrong})


@pytest.mark.parametrize('day', ['2026-02-03', '"2026-02-03"'])
def test_what_a_chat_template_is_told(tmp_path, day):
    file = tmp_path / 'config.yaml'
    told = (
        f'chat_template_kwargs: {{enable_thinking: false, n: 1, x: 0.5, language: no}}, '
        f'chat_template_date: {day}'
    )
    file.write_text(f'workload: language\nmodel: {{path: a, {told}}}\ndata: {{path: b}}\n')
    run = runs.load(file)
    kwargs = {'enable_thinking': False, 'n': 1, 'x': 0.5, 'language': 'no'}
    assert repr(run.model.chat_template_kwargs) == repr(kwargs)
    assert run.model.chat_template_date == datetime.date(2026, 2, 3)
    configfile.write(run, file)
    assert runs.load(file) == run
    arguments = ['--model.chat-template-kwargs', 'enable_thinking', 'false', 'n', '1']
    arguments += ['x', '0.5', 'language', 'no']
    same = configfile.override(
        make(model={'chat_template_date': day.strip('"')}), arguments, '', ''
    )
    assert repr(same.model.template) == repr(run.model.template)


@pytest.mark.parametrize(
    ('told', 'message'),
    [
        ('chat_template_date: 5', 'chat_template_date: expected a day, 2024-07-26 for example'),
        ('chat_template_date: x', 'chat_template_date: expected a day'),
        ('chat_template_date: "2024-02-30"', 'chat_template_date: expected a day'),
        ('chat_template_date: 2024-02-03 10:00:00', 'chat_template_date: expected a day'),
        ('chat_template_kwargs: {a: [1]}', 'kwargs.a: expected text, a number, true or false'),
        ('chat_template_kwargs: {a: .inf}', 'kwargs.a: expected text, a number, true or false'),
        ('chat_template_kwargs: {a: .nan}', 'kwargs.a: expected text, a number, true or false'),
        ('chat_template_kwargs: {a: null}', 'kwargs.a: expected text, a number, true or false'),
        ('chat_template_kwargs: {enable_thinking: no}', 'enable_thinking: expected true or false'),
        ('chat_template_kwargs: {thinking: Off}', "thinking: expected true or false, got 'Off'"),
        ('chat_template_kwargs: {1: 2}', 'should be a valid string'),
        ('chat_template_kwargs: [1]', 'should be a valid dictionary'),
    ],
)
def test_what_a_chat_template_cannot_be_told(tmp_path, told, message):
    file = tmp_path / 'config.yaml'
    file.write_text(f'workload: language\nmodel: {{path: a, {told}}}\ndata: {{path: b}}\n')
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        runs.load(file)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'optimizer': {'minibatches': 3}}, 'optimizer.minibatches: 3 does not divide prompts_per'),
        ({'objective': {'mixture': {'dpr': 0, 'dpp': 0.5, 'ddp': 0.5}}}, 'has no gradient'),
        ({'objective': {'mixture': {'dpr': 0.5}}, 'group_size': 3}, 'group_size: 3; rows with'),
        ({'objective': OFFLINE}, 'divergence.states: "policy" needs rows'),
        ({'reward': {'source': 'model'}}, 'reward.path: needed for reward.source: model'),
        ({'reward': {'path': 'x'}}, 'reward.path: not used by reward.source: none'),
        ({'reward': {'chat_template_kwargs': {'a': 1}}}, 'reward.chat_template_kwargs: not used'),
        (
            {'evaluation': {'decoding': 'greedy', 'samples': 2}},
            'evaluation.samples: 2; evaluation.decoding: greedy has one response to a prompt',
        ),
        ({'labeller': {'discount': 0.9}}, 'labeller.discount: a response has one reward'),
        ({'labeller': {'skip': 0.1}, 'objective': {'mixture': {'dpr': 0.5}}}, 'labeller.skip'),
        ({'optimizer': {'decay': 'linear', 'warmup_updates': 4}}, 'warmup_updates: 4; the run has'),
        ({'seeds': [1, 1]}, 'seeds, sweep: the same run twice'),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        check(make(**settings))
    assert '\n' not in str(caught.value)


def test_a_mixture_with_the_labeller_needs_one():
    nobody = Rater()
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
        (['--rewards.short.weight', '1'], 'rewards: write it into the file, rewards: {NAME: {KEY'),
        (['--rewards', '{}'], 'rewards: write it into the file, rewards: {NAME: {KEY: VALUE}}'),
        (['--optimizer.arguments', '{b1: 0.5}'], 'arguments: names and values in turn, e.g. --opt'),
        (['--optimizer.arguments.b1', '0.5'], 'arguments: names and values in turn, e.g. --opt'),
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
