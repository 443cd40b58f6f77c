"""The committed results of `benchmarks.plan`: what they promise; that headers and docs say so."""

import json
import math
import re
from pathlib import Path

import pytest

from benchmarks import plan
from sail_jax import runs
from sail_jax.language.model import published
from sail_jax.plan import targets
from tests.support.paths import ROOT

PAIRS = [(name, target) for name, chosen in plan.TARGETS.items() for target in chosen]
RESULTS = [pair for pair in PAIRS if plan.result(*pair).exists()]
OF_PAPER = [
    f'{data}-{stage}'
    for data in ('pp10', 'u10')
    for stage in ('sft', 'dpo', 'dpr', 'dpr-revkl', 'last-layer')
]
OF_QWEN = ['qwen2.5-0.5b-ultrafeedback', 'qwen2.5-0.5b-saferlhf-lora', 'sft', 'reward']
MISSES = {
    'fits': set(),
    'learning': {
        *((f'language/paper/{name}', 'h100:1') for name in OF_PAPER),
        *((f'language/{name}', 'v6e:2x4') for name in OF_QWEN),
        ('language/smollm2/align', 'h100:1'),
    },
    # Lanes are many for what a device holds of the weights. Of Qwen2.5, whose steps by themselves
    # are within (`test_bounds`), it is reading the prompts.
    'decoding': {
        *(
            (f'language/paper/{name}', 'h100:1')
            for name in OF_PAPER
            if 'dpr' in name or 'last' in name
        ),
        *((f'language/{name}', 'h100:8') for name in OF_QWEN[:2]),
        *(
            (f'language/llama-3-8b-{name}', target)
            for name in ('ultrafeedback-lora', 'saferlhf')
            for target in ('h100:8', 'v5e:4x4', 'v5p:2x2x2')
        ),
        ('language/smollm2/align', 'h100:1'),
    },
    'memory': set(),
}
"""Files and targets that are not within a bound. What comes within it is no longer one."""


@pytest.fixture(scope='module')
def said():
    return {pair: json.loads(plan.result(*pair).read_text()) for pair in RESULTS}


def fullest(result):
    """Of a device, in the program that takes most of it."""
    return max(x['bytes_per_device']['total'] for x in result['programs'].values())


@pytest.mark.parametrize(('name', 'target'), RESULTS)
def test_a_result_is_of_the_file_as_it_is(name, target, said):
    options = [x for part, of in plan.OPTIONS.items() if name.startswith(part) for x in of]
    changed = dict(option.removeprefix('--').split('=') for option in options)
    run = runs.load(plan.CONFIGS / f'{name}.yaml', **changed)
    then = said[name, target]['config']
    assert at_keys_of(then, json.loads(run.model_dump_json())) == then


def at_keys_of(then, now):
    """Settings that came later are left out."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return now
    return {key: at_keys_of(value, now.get(key)) for key, value in then.items()}


def test_learning_takes_at_most_half_more_than_its_products(said):
    learns = {pair: x['programs']['learn'] for pair, x in said.items() if 'learn' in x['programs']}
    compiled = {pair: x for pair, x in learns.items() if 'error' not in x}
    over = {pair for pair, x in compiled.items() if x['roofline_s'] > 1.5 * x['matmul_s']}
    assert over == MISSES['learning']


def test_decoding_reads_weights_and_cache_once_a_token(said):
    """Of a whole drawing, by its steps; all matrices are split where any is."""
    draws = {pair: x for pair, x in said.items() if 'steps' in x['programs'].get('draw', ())}
    over = {
        pair
        for pair, x in draws.items()
        if x['programs']['draw']['traffic_bytes'] > 1.15 * x['programs']['draw']['steps'] * read(x)
    }
    assert over == MISSES['decoding']


def read(result):
    """Bytes of the weights and the full cache of a device's lanes, in bfloat16."""
    run, mesh = result['config'], result['mesh']
    a = published.architecture(Path(run['model']['path']))
    heads, keys = a.heads * a.head_dim, a.kv_heads * a.head_dim
    layer = a.hidden_size * (2 * heads + 2 * keys + 3 * a.intermediate_size)
    weights = a.layers * layer + a.vocab_size * a.hidden_size
    lanes = run['group_size'] * run['sampling']['max_tokens']
    prompts = run['prompts_per_update'] / math.prod(mesh.values())
    cache = 2 * a.layers * keys * prompts * (run['data']['max_prompt_tokens'] + lanes)
    return 2 * (weights / (mesh['fsdp'] * mesh['tensor']) + cache)


def test_an_adapter_decodes_in_few_temporaries(said):
    """15.7 GiB once, where a copy of the split weights was gathered on each device."""
    draw = said['language/llama-3-8b-ultrafeedback-lora', 'h100:8']['programs']['draw']
    assert draw['bytes_per_device']['temporaries'] < 6 * 2**30


def test_no_chip_computes_more_than_it_can(said):
    """Where products are missed, what the model needs is more than what was found."""
    over = {pair for pair, x in said.items() if x['bounds'].get('mfu', 0) > 1}
    assert not over


def test_files_fit_with_a_tenth_to_spare(said):
    assert {pair for pair, x in said.items() if not x['fits']} == MISSES['fits']
    over = {pair for pair, x in said.items() if fullest(x) > 0.9 * x['chip']['memory']}
    assert over == MISSES['memory']


def test_nothing_is_multiplied_in_less_than_its_type(said):
    """float32 as such, in every program of every workload, and bfloat16 in language alone."""
    kinds = {
        pair: set().union(*(x.get('flops_by_precision', ()) for x in result['programs'].values()))
        for pair, result in said.items()
    }
    language = {pair for pair, x in said.items() if 'model' in x['config']}
    assert all(kinds[pair] <= {'bf16', 'f32 highest'} for pair in language)
    # MJX itself asks for `high` where it looks whether two convex bodies touch.
    convex = {pair for pair in kinds if 'panda' in pair[0]}
    assert {pair: kinds[pair] for pair in kinds.keys() - language} == {
        pair: {'f32 highest'} | ({'f32 high'} if pair in convex else set())
        for pair in kinds.keys() - language
    }


def test_the_heaviest_operations_have_their_line(said):
    for pair, result in said.items():
        for program in result['programs'].values():
            assert all(x['source'] for x in program.get('heaviest', ())), pair


def test_exchanges_are_along_axes_of_the_mesh(said):
    for result in said.values():
        wide = {axis for axis, size in result['mesh'].items() if size > 1}
        for program in result['programs'].values():
            assert all(set(x['axes'].split('+')) <= wide for x in program.get('collectives', ()))


@pytest.mark.parametrize('name', sorted({name for name, _ in RESULTS}))
def test_a_files_header_says_where_it_fits(name, said):
    lines = (plan.CONFIGS / f'{name}.yaml').read_text().splitlines()
    comment = ' '.join(line.removeprefix('#').strip() for line in lines if line.startswith('#'))
    match = re.search(r'Fits, as `sail-jax plan` predicts \([\d-]+\): (.*?)\.(?= [A-Z]|$)', comment)
    assert match, f'configs/{name}.yaml does not say where it fits'
    found = re.findall(r'(\w+:[\dx]+) \((under )?([\d.]+) of (\d+) GiB', match[1])
    expected = []
    for target in plan.TARGETS[name]:
        result = said.get((name, target))
        if result is not None and result['fits']:
            size, memory = fullest(result) / 2**30, result['chip']['memory'] / 2**30
            under = 'under ' if size < 0.05 else ''
            expected.append((target, under, '0.1' if under else f'{size:.1f}', f'{memory:.0f}'))
    assert found == expected


def test_the_docs_have_the_table():
    assert plan.table() in (ROOT / 'docs' / 'results' / 'plan.md').read_text()


def test_files_and_targets_are_there():
    for name, target in PAIRS:
        assert (plan.CONFIGS / f'{name}.yaml').exists()
        assert str(targets.parse(target)) == target
    # Those of what was measured on a card are beside it in the guide.
    others = set(plan.OUT.glob('*.json')) - {plan.result(*pair) for pair in RESULTS}
    assert all(file.stem.endswith('-h200-1') for file in others)


def test_a_name_of_no_result_is_refused(monkeypatch, capsys):
    """Not the end of a command that planned nothing."""
    monkeypatch.setattr('sys.argv', ['plan', 'control/ant'])
    with pytest.raises(SystemExit, match='2'):
        plan.main()
    assert 'control/ant: in the name of no result' in capsys.readouterr().err
