"""What the pages of docs/ say about the code; CI builds them strictly besides."""

import ast
import builtins
import re
import shlex

import pytest

from sail_jax import commands, refusals, runs
from tests.support.paths import ROOT

PAGES = sorted(
    path
    for path in (ROOT / 'docs').rglob('*.md')
    if not {'_build', 'generated'} & set(path.relative_to(ROOT).parts)
)
FILES = (
    'quickstart',
    'control/sac/cheetah_run',
    'language/qwen2.5-0.5b-ultrafeedback',
    'language/sft',
    'language/reward',
)
KEYS = {
    key
    for name in FILES
    for key in refusals.fields(type(runs.load(ROOT / 'configs' / f'{name}.yaml')))
}
SECTIONS = {key.partition('.')[0] for key in KEYS if '.' in key}
NO_KEYS = ('env.step', 'section.key')


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT / 'docs')))
def page(request):
    return request.param.read_text()


def test_settings_exist(page):
    named = re.findall(r'`(?:--)?([a-z_]+(?:\.[a-z_]+)+)\b(?![(/])[^`]*`', page)
    for key in named:
        if key.partition('.')[0] in SECTIONS and key not in NO_KEYS:
            assert key in KEYS, key


def test_options_in_commands_exist(page):
    for key in re.findall(r'--([a-z_]+\.[a-z_.]+)', page):
        assert key in KEYS or key in NO_KEYS, key


@pytest.mark.parametrize('where', ['.', 'docs', 'benchmarks', 'configs', 'examples', 'sail_jax'])
def test_commands_are_taken(where):
    parser = commands.parser()
    paths = ROOT.glob('*.md') if where == '.' else (ROOT / where).rglob('*.*')
    for path in paths:
        if path.suffix in ('.md', '.py', '.yaml') and '_build' not in path.parts:
            for line in re.findall(r'(?m)^[# ]*sail-jax +((?!train|plan).*)', path.read_text()):
                parser.parse_args(shlex.split(line, comments=True))


def test_paths_exist(page):
    for path in re.findall(
        r'`((?:configs|benchmarks|sail_jax|docs|tests|examples)/[\w./-]+)`', page
    ):
        assert (ROOT / path).exists(), path


def test_python_has_every_name_it_uses(page):
    """In one of the page's blocks."""
    blocks = re.findall(r'```python\n(.*?)```', page, re.DOTALL)
    used, there = set(), set(dir(builtins))
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        match node:
            case ast.Name(name, ast.Load()):
                used.add(name)
            case ast.Name(name) | ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                there.add(name)
            case ast.ClassDef(name) | ast.arg(name):
                there.add(name)
            case ast.alias(name, other):
                there.add((other or name).partition('.')[0])
    assert not used - there


def test_every_promise_names_tests_that_there_are():
    page = (ROOT / 'docs' / 'reliability.md').read_text()
    files = sorted((ROOT / 'tests').rglob('test_*.py'))
    there = '\n'.join([*(path.stem for path in files), *(path.read_text() for path in files)])
    named = set(re.findall(r'`(test_\w+)', page))
    assert len(named) > 50
    assert not [name for name in sorted(named) if name not in there]
