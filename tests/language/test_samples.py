"""Sample tables: they are worth no run."""

import resource

import numpy as np

import sail_jax
from sail_jax import metrics
from sail_jax.language.samples import Answers, write_table
from tests.language import small


def answers(text):
    """One response to one prompt."""
    one = np.ones((1, 1), int)
    return Answers(one[..., None], one, one.astype(bool), [[text]], np.full((1, 1), 0.5))


def test_a_table_that_a_full_disk_does_not_take_is_said(tmp_path):
    path = tmp_path / 'samples' / '000001.md'
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics.console.capture() as said:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
            write_table(path, ['the cat'], answers('no'), answers('yes'))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.get() == f'{path}: File too large; the run goes on without this table\n'
    write_table(path, ['the cat'], answers('no'), answers('yes'))
    assert path.read_text().splitlines()[2:] == ['| the cat | no | yes | 0.500 | 0.500 |']


def test_a_run_goes_on_where_its_samples_cannot_be_written(tmp_path):
    model = small.checkpoint(tmp_path / 'model')
    prompts = small.data(tmp_path / 'prompts.jsonl')
    path = tmp_path / 'run'

    def reward(prompts, responses):
        # The run directory was empty when the run began.
        (path / 'samples').write_text('in the way')
        return small.letters(prompts, responses)

    with metrics.console.capture() as said:
        sail_jax.train(small.run(model, prompts), path, reward=reward, quiet=True)
    rows = metrics.read_rows(path / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'eval/reward' in row] == [0, 2, 4]
    assert ' '.join(said.get().split()).count('without this table') == 3
    assert (path / 'samples').read_text() == 'in the way'
