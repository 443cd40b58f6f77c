"""Sample tables: they are worth no run."""

import resource
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

import sail_jax
from sail_jax.language.samples import Answers, write_table
from sail_jax.terminal import escaped
from sail_jax.training import metrics
from tests.support import small


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


PIECES = st.lists(
    st.one_of(
        st.sampled_from(['![x](http://a.b/c)', '[x](javascript:a)', '](', '[^1]', 'https://a.b']),
        st.sampled_from(['<img src=x>', '&lt;', '<!--', '<a@b.c>', 'www.a.com', ':smile:', '$']),
        st.sampled_from(['`', '**', '__', '~~', '|', '\\', '#', '- ', '1. ', 'é', 'x', ' ']),
        st.sampled_from(['\n', '\x1b[31m', '\u202e']),
    ),
    min_size=1,
    max_size=8,
).map(''.join)


@given(PIECES, PIECES)
@example('a \\| b', '\\')
def test_texts_are_text_whatever_they_are_made_of(prompt, response):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / 'samples' / '1.md'
        write_table(path, [prompt], answers(response), answers(response))
        written = path.read_text()
    assert not {'\x1b', '\u202e'} & set(written)
    tokens = MarkdownIt('commonmark').enable(['table', 'strikethrough']).parse(written)
    rows = [token for token in tokens if token.type == 'inline'][5:]
    assert len(rows) == 5
    for cell, text in zip(rows, (prompt, response, response), strict=False):
        # No emphasis, link, image, code or HTML, but for the ends of lines.
        kinds = {part.type for part in cell.children} - {'text', 'text_special'}
        assert kinds <= {'html_inline'}
        html = {part.content for part in cell.children if part.type == 'html_inline'}
        assert html <= {'<br>'}
        shown = ''.join(part.content for part in cell.children if part.type != 'html_inline')
        expected = ''.join(map(escaped, text.splitlines()))
        assert ''.join(shown.split()) == ''.join(expected.split())


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
