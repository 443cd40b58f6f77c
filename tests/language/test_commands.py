"""The command line on runs of language models, as they lie in their directories."""

import shutil

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from safetensors.numpy import load_file

import sail_jax
from sail_jax import curves, runs
from sail_jax.cli import main
from sail_jax.errors import TrainingFailed, UserError
from sail_jax.language.sft.config import SftRun
from sail_jax.training import metrics, trainer
from tests.support import small
from tests.support.disk import disk_of


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """A supervised run that ends worse than it was, an alignment of its model by a function, and
    one by a lexicon."""
    path = tmp_path_factory.mktemp('trained')
    model = small.checkpoint(path / 'checkpoint')
    pairs = small.data(path / 'pairs.jsonl', pairs=True)
    short = {'max_prompt_tokens': 32, 'max_response_tokens': 8}
    sft = {
        'workload': 'sft',
        'total_prompts': 16,
        'prompts_per_update': 4,
        'model': {'path': str(model)},
        'data': {'path': str(pairs), **short},
        'optimizer': {'learning_rate': 3.0, 'decay': 'none'},
        'evaluation': {'every_updates': 1, 'prompts': 4},
        'checkpoints': {'every_updates': 4, 'keep': 1},
        'logging': {'tensorboard': False},
    }
    sail_jax.train(SftRun.model_validate(sft), path / 'sft', quiet=True)
    settings = {'model': {'path': str(path / 'sft/model')}, 'total_prompts': 8}
    run = small.run(model, pairs, **settings)
    sail_jax.train(run, path / 'brief', reward=small.letters, quiet=True)
    run = small.run(model, pairs, **settings, reward={'source': 'positivity'})
    sail_jax.train(run, path / 'positive', quiet=True)
    return path


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('sft', '/sft: a run; its model is .*/sft/model$'),
        ('brief', '/brief: a run, .* `sail-jax export .*/brief DIR` writes one'),
        ('chekpoint', '/chekpoint: no such directory$'),
        ('empty', '/empty/config.json: No such file'),
    ],
)
def test_a_directory_without_a_model_is_refused_with_where_it_is(trained, tmp_path, path, message):
    (trained / 'empty').mkdir(exist_ok=True)
    settings = {'workload': 'sft', 'model': {'path': str(trained / path)}, 'data': {'path': 'x'}}
    with pytest.raises(UserError, match=message):
        sail_jax.train(SftRun.model_validate(settings), tmp_path / 'run')


def exhaust(task, at, donated):
    """The task, with an allocation that fails in update `at`, or once the state's memory is taken
    there."""

    def dispatch(state):
        if int(state.step) == at:
            if donated:
                jax.tree.map(lambda x: x.delete(), state)
            jnp.zeros(2**55, jnp.int8).block_until_ready()
        return task.dispatch(state)

    return task._replace(dispatch=dispatch)


@pytest.mark.parametrize('donated', [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_batch_that_memory_does_not_hold_is_one_line_and_the_run_goes_on(
    trained, tmp_path, donated
):
    run, path = runs.load(trained / 'positive/config.yaml'), tmp_path / 'run'
    task = runs.make_task(run, run_dir=path)
    with pytest.raises(TrainingFailed) as caught:
        trainer.train(run, exhaust(task, 1, donated), path, quiet=True)
    said = str(caught.value)
    assert said.startswith('out of device memory (RESOURCE_EXHAUSTED: ')
    assert 'lower prompts_per_update, group_size, sampling.max_tokens' in said
    kept = f'checkpoints so far are in {path}/checkpoints' if donated else 'saved at 4 prompts'
    assert said.endswith(kept)
    assert '\n' not in said
    result = sail_jax.train(run, path, resume=True, quiet=True)
    assert [row['step'] for row in metrics.read_rows(path / 'metrics.jsonl')] == [0, 1, 2]
    assert result.length == 8


def drawn(trained, out, *names):
    """The exit status of a plot, and the text in it."""
    with plt.rc_context({'svg.fonttype': 'none'}):
        status = main(['plot', *(str(trained / name) for name in names), '--out', str(out)])
    return status, out.read_text()


def test_plot_of_a_supervised_run_has_its_loss(trained, tmp_path):
    status, text = drawn(trained, tmp_path / 'plot.svg', 'sft')
    assert status == 0
    assert 'loss on held-out responses' in text
    assert len(curves.load(trained / 'sft', 'sft').rows) == 5


def test_plot_draws_what_it_can_and_names_the_rest(trained, tmp_path, capsys):
    status, text = drawn(trained, tmp_path / 'plot.svg', 'none', 'brief', 'sft')
    assert status == 2
    assert 'nats per response' in text
    printed = capsys.readouterr()
    assert printed.out == f'{tmp_path}/plot.svg\n'
    missing, other = printed.err.splitlines()
    assert missing.endswith(f'not drawn: {trained}/none/config.yaml: No such file or directory')
    assert other.endswith(f'not drawn: {trained}/sft: sft beside language; plot them apart')


def test_plot_of_nothing_that_can_be_drawn_writes_nothing(trained, tmp_path, capsys):
    arguments = [str(trained / 'none'), str(trained), '--out', str(tmp_path / 'plot.svg')]
    assert main(['plot', *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{trained}/none/config.yaml' in line
    assert f'{trained}/config.yaml' in line
    assert not (tmp_path / 'plot.svg').exists()


def test_plot_calls_curves_by_their_runs_and_says_which_model_they_start_from(trained, tmp_path):
    _, alone = drawn(trained, tmp_path / 'one.svg', 'brief')
    assert 'brief</text>' in alone
    assert 'sft/model</text>' in alone
    _, both = drawn(trained, tmp_path / 'two.svg', 'brief', 'positive')
    assert 'brief: reward.source none</text>' in both
    assert 'positive: reward.source positivity</text>' in both


def test_plot_has_runs_in_its_legend_that_the_first_axes_lack(trained, tmp_path):
    copy = tmp_path / 'pairs_only'
    copy.mkdir()
    settings = (trained / 'brief/config.yaml').read_text()
    (copy / 'config.yaml').write_text(settings.replace('beta: 0.1', 'beta: 0.2'))
    rows = (trained / 'brief/metrics.jsonl').read_text()
    (copy / 'metrics.jsonl').write_text(rows.replace('eval/reward"', 'eval/other"'))
    _, text = drawn(trained, tmp_path / 'plot.svg', 'brief', copy)
    assert 'pairs_only: objective.beta 0.2</text>' in text


def test_best_model_of_a_supervised_run_is_that_of_the_lowest_loss(trained, tmp_path, capsys):
    """It is the one before the first update; the exported model is that of the last."""
    rows = curves.load(trained / 'sft', 'sft').rows
    assert min(rows, key=lambda row: row['eval/loss'])['step'] == 0
    said = {}
    for name in ('sft --best', 'checkpoint', 'sft', 'sft/model'):
        path, *best = name.split()
        given = [str(trained / path), 'the cat', *best, '--max-tokens', '6']
        assert main(['generate', *given]) == 0
        said[name] = capsys.readouterr().out
    assert said['sft --best'] == said['checkpoint']
    assert said['sft'] == said['sft/model']
    assert said['sft'] != said['checkpoint']

    with disk_of(1000):
        assert main(['export', str(trained / 'sft'), str(tmp_path / 'best'), '--best']) == 1
    assert 'best: cannot be written' in capsys.readouterr().err
    assert main(['export', str(trained / 'sft'), str(tmp_path / 'best'), '--best']) == 0
    ours, theirs = (
        load_file(path / 'model.safetensors')
        for path in (tmp_path / 'best', trained / 'checkpoint')
    )
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name])


def test_a_supervised_run_that_left_no_model_yet_answers_from_its_checkpoint(
    trained, tmp_path, capsys
):
    shutil.copytree(trained / 'sft', tmp_path / 'sft', ignore=lambda *_: ['model'])
    for path in (trained / 'sft', tmp_path / 'sft'):
        assert main(['generate', str(path), 'the \x1b[31mcat', '--max-tokens', '6']) == 0
    ours, theirs = capsys.readouterr().out.splitlines()
    assert ours == theirs
    assert ours.startswith('the \\x1b[31mcat')


@pytest.mark.parametrize(('left_out', 'chat'), [(0, True), (0, False), (1, False)])
def test_a_prompt_that_leaves_a_chat_template_out_is_remarked(
    trained, tmp_path, capsys, left_out, chat
):
    ignored = ['chat_template.jinja'] * left_out
    shutil.copytree(trained / 'checkpoint', tmp_path / 'model', ignore=lambda *_: ignored)
    options = ['--chat'] * chat
    assert main(['generate', str(tmp_path / 'model'), 'the cat', *options]) == 0
    said = '--chat (chat=True) puts prompts into it' in capsys.readouterr().err
    assert said == (not left_out and not chat)


def test_from_python_models_answer_as_on_the_command_line(trained, capsys):
    prompts, path = ['the cat', 'no'], trained / 'brief'
    responses = sail_jax.generate(path, prompts, samples=2, seed=3)
    assert [len(group) for group in responses] == [2, 2]
    assert main(['generate', str(path), *prompts, '--samples', '2', '--seed', '3']) == 0
    shown = [p + text for p, group in zip(prompts, responses, strict=True) for text in group]
    assert capsys.readouterr().out == '\n---\n'.join(shown) + '\n'
    assert sail_jax.generate(path, []) == []


def test_a_language_policy_is_a_function_from_prompts_to_responses(trained):
    prompts, path = ['the cat', 'no'], trained / 'brief'
    greedy = sail_jax.load_policy(path)
    assert (
        greedy(iter(prompts))
        == greedy(prompts)
        == greedy(prompts, 5)
        == [greedy([prompt])[0] for prompt in prompts]
        == [text for (text,) in sail_jax.generate(path, prompts, temperature=0)]
    )
    sampling = sail_jax.load_policy(path, deterministic=False)
    assert sampling(prompts, 5) == [text for (text,) in sail_jax.generate(path, prompts, seed=5)]
    untrained = sail_jax.load_policy(trained / 'sft', best=True, deterministic=False)
    assert len({untrained(['the cat'], seed)[0] for seed in range(3)}) == 3


@pytest.mark.parametrize(
    ('prompts', 'options', 'message'),
    [
        ('the cat', {}, "prompts: expected a list of texts, got 'the cat'"),
        (['the cat', 3], {}, 'prompts: expected a list of texts'),
        (None, {}, 'prompts: expected a list of texts, got None'),
        ({'role': 'user', 'content': 'hi'}, {}, "prompts: expected a list of texts, got {'role'"),
        (['the cat'], {'samples': 0}, 'samples: should be an integer from 1 to'),
        (['the cat'], {'seed': 1.5}, 'seed: should be an integer from 0 to'),
        (['the cat'], {'temperature': -1}, 'generate: temperature: should be greater than 0'),
    ],
)
def test_wrong_arguments_of_generate_are_one_line(trained, prompts, options, message):
    with pytest.raises(UserError, match=message) as caught:
        sail_jax.generate(trained / 'brief', prompts, **options)
    assert '\n' not in str(caught.value)


def test_more_prompts_than_rows_are_said_once(trained, caplog):
    pairs = trained / 'pairs.jsonl'  # 16 rows, of which 4 are held out.
    for prompts in (12, 16):
        caplog.clear()
        run = small.run(trained / 'checkpoint', pairs, prompts_per_update=prompts)
        runs.make_task(run)
    (said,) = caplog.messages
    assert said.startswith(f'prompts_per_update: 16, and {pairs} has 12 rows to train on')


def test_evaluate_says_that_the_rows_of_a_function_are_missing(trained, capsys):
    assert main(['evaluate', str(trained / 'brief')]) == 0
    printed = capsys.readouterr()
    assert 'win rate' not in printed.out
    said = f"reward: sail_jax.evaluate('{trained}/brief', reward=f)"
    assert [said in line for line in printed.err.splitlines() if 'Python' in line] == [True]
    assert main(['evaluate', str(trained / 'positive')]) == 0
    printed = capsys.readouterr()
    assert 'win rate' in printed.out
    assert 'Python' not in printed.err


def test_resume_of_a_run_labelled_by_a_function_is_sent_to_python(trained, capsys):
    path = trained / 'brief'
    arguments = ['train', str(path / 'config.yaml'), '--run-dir', str(path), '--resume']
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'resume it from Python, with the reward' in line
    assert f"sail_jax.train('{path}/config.yaml', '{path}', reward=f, resume=True)" in line
    result = sail_jax.train(path / 'config.yaml', path, reward=small.letters, resume=True)
    assert result.length == 8
