"""`sail-jax plan`: what it refuses before anything large is imported, and what it says."""

import json
import re
import subprocess
import sys

import jax
import pytest

from sail_jax import cli
from sail_jax.plan import compiler, count, needs, report, roofline, topology
from sail_jax.plan.collectives import Fleet
from sail_jax.plan.compiler import Compiled
from sail_jax.plan.targets import CHIPS, GIB
from tests.support.compiled import TEXTS
from tests.support.paths import ROOT

HOPPER = str(ROOT / 'configs' / 'control' / 'hopper.yaml')
STUDY = str(ROOT / 'configs' / 'bandit' / 'sample_complexity.yaml')
QUICKSTART = str(ROOT / 'configs' / 'language' / 'quickstart.yaml')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([HOPPER], 'plan: --on which target? h100:8 for example; --on list shows them all'),
        (['--on', 'h100:8'], 'plan: which configuration?'),
        ([HOPPER, '--on', 'h10:8'], "--on h10:8: no chip 'h10'; did you mean h100?"),
        ([HOPPER, '--on', 'h100:8', '--env.nam', 'ant'], 'unknown key env.nam'),
        ([QUICKSTART, '--on', 'h100:8'], 'plan: not for language-quickstart runs, but for'),
        ([HOPPER, '--on', 'h100:1', '--rollout.segment-length', '2000'], 'is longer than the'),
    ],
)
def test_refusals(arguments, message, capsys):
    assert cli.main(['plan', *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count('\n') == 1


def test_the_targets_are_listed(capsys):
    assert cli.main(['plan', '--on', 'list']) == 0
    said = capsys.readouterr().out
    for chip in CHIPS.values():
        assert chip.source in said


def test_refusals_and_help_import_no_jax():
    code = f"""
import sys
from sail_jax import cli
for arguments in (['--on', 'list'], [{HOPPER!r}, '--on', 'h10:8'], [{HOPPER!r}, '--help']):
    try:
        cli.main(['plan', *arguments])
    except SystemExit:
        pass
assert 'jax' not in sys.modules
"""
    subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, cwd=ROOT)


def test_a_complaint_names_operation_and_line():
    said = """INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.357 = bf16[16,7154,8]
metadata={op_name="jit(learn)/while/body/dot_general" stack_frame_id=438}

Suspected Python Code Location:
  /home/x/lib/python3.12/site-packages/brax/math.py:96:17 [f]
  /home/x/code/sail_jax/language/model/attention.py:153:17 [attend]
  /home/x/code/sail_jax/language/model/transformer.py:240:41 [Decoder._layer]
"""
    line = compiler.explained(said)
    assert line.startswith("INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.357")
    assert line.endswith(
        '(dot_general, sail_jax/language/model/attention.py:153 (brax/math.py:96))'
    )


@pytest.mark.parametrize(
    'said',
    [
        'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.50G of 15.75G hbm.',
        'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO '
        'temporaries (21.50G) exceeds available HBM (15.75G).',
    ],
)
def test_a_full_memory_is_told_from_other_complaints(said):
    assert compiler.explained(said) == 'takes 21.50G of a memory of 15.75G'


@pytest.mark.parametrize(('target', 'extra'), [('h100:8', 'cuda12'), ('v5e:2x4', 'tpu')])
def test_a_compiler_that_is_not_here_is_named_with_its_extra(target, extra, capsys, monkeypatch):
    nothing = {'cuda': ('jax_plugins.of_nobody', 'nobody.cuda'), 'tpu': ('nobody',)}
    monkeypatch.setattr(needs, 'MODULES', nothing)
    assert cli.main(['plan', HOPPER, '--on', target]) == 2
    said = capsys.readouterr().err
    assert f'--on {target}: needs the compiler' in said
    assert f"pip install 'sail-jax[{extra}]'" in said
    assert said.count('\n') == 1


@pytest.fixture
def compilers(monkeypatch):
    """Of the targets that are asked for, without them: a recorded text, or what did not compile."""

    def compile_(program, target):
        if target.chip.name == 'v6e':
            return Compiled('', {}, 'takes 41G of a memory of 31G', 1.5)
        text = (TEXTS / f'{target.chip.platform}-scan.txt').read_text()
        return Compiled(text, {'temporaries': GIB}, '', 1.5)

    monkeypatch.setattr(compiler, 'compile', compile_)
    monkeypatch.setattr(needs, 'require', lambda target: None)
    monkeypatch.setattr(topology, 'devices', lambda target: jax.devices()[:1])


def test_several_targets_are_compared_and_one_is_an_object(compilers, tmp_path, capsys):
    arguments = ['plan', STUDY, '--json', str(tmp_path / 'x.json'), '--on']
    assert cli.main([*arguments, 'v5e:2x4', 'h100:8', 'v6e:2x4']) == 1
    slow, fast, full = json.loads((tmp_path / 'x.json').read_text())
    assert [x['target'] for x in (slow, fast, full)] == ['v5e:2x4', 'h100:8', 'v6e:2x4']
    assert [x['fits'] for x in (slow, fast, full)] == [True, True, False]
    (program,) = full['programs'].values()
    assert program['error'] == 'takes 41G of a memory of 31G'
    assert 'roofline_s' not in program
    assert full['bounds'] == {}
    said = capsys.readouterr().out
    assert 'ascend does not compile: takes 41G of a memory of 31G' in said
    assert 'fits: no (ascend)' in said
    table = said.partition('where would this run best?')[2].splitlines()
    rows = [re.findall(r'[^\s│]+', line) for line in table if ':' in line]
    seconds = [one['bounds']['update_s'] for one in (fast, slow)]
    best, other, none = (row[:6] for row in rows)
    assert best == ['h100:8', '8', 'yes', f'{seconds[0]:.3g}', '1.00', f'{8 * seconds[0]:.3g}']
    relative = f'{seconds[1] / seconds[0]:.2f}'
    assert other[:5] == ['v5e:2x4', '8', 'yes', f'{seconds[1]:.3g}', relative]
    assert none == ['v6e:2x4', '8', 'no', 'n/a', 'n/a', 'n/a']
    assert float(relative) > 1

    assert cli.main([*arguments, 'h100:8']) == 0
    assert json.loads((tmp_path / 'x.json').read_text()) == fast
    assert 'where would this run best?' not in capsys.readouterr().out


@pytest.mark.parametrize('platform', ['cuda', 'tpu'])
def test_times_at_the_roofline(platform):
    chip = CHIPS['h100' if platform == 'cuda' else 'v5e']
    fleet = Fleet({'data': 2, 'fsdp': 4, 'tensor': 1}, [0] * 8)
    scan = count.count((TEXTS / f'{platform}-gathered.txt').read_text(), platform)
    times = roofline.times(scan, chip, fleet)
    assert times.matmul_s == pytest.approx(scan.flops / chip.flops)
    assert times.memory_s == pytest.approx(scan.traffic_bytes / chip.bandwidth)
    assert times.links_s == pytest.approx(7 * 2 * 2**20 * 3 / 4 / chip.link)
    assert times.roofline_s == max(times)
    assert times.bound_by == ('memory' if platform == 'cuda' else 'matmul')
    (exchange,) = roofline.exchanges(scan, fleet)
    assert exchange[:4] == ('all-gather', 'fsdp', 'within', 7)
    heavy = roofline.heaviest(scan, chip, fleet, 3)
    assert heavy[0].operation == 'dot_general'
    assert heavy[0].times == 7
    assert [x.seconds for x in heavy] == sorted((x.seconds for x in heavy), reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('target', 'library'), [('h100:2', 'jax_cuda12_plugin'), ('v5e:2x2', 'libtpu')]
)
def test_a_plan_from_end_to_end(target, library, tmp_path, capfd, monkeypatch):
    pytest.importorskip(library)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    file = tmp_path / 'plan.json'
    config = str(ROOT / 'configs' / 'language' / 'qwen2.5-0.5b-ultrafeedback.yaml')
    model = tmp_path / 'tiny'
    model.mkdir()
    sizes = {
        'model_type': 'qwen2',
        'vocab_size': 512,
        'hidden_size': 128,
        'intermediate_size': 256,
        'num_hidden_layers': 2,
        'num_attention_heads': 2,
        'num_key_value_heads': 2,
        'max_position_embeddings': 4096,
    }
    (model / 'config.json').write_text(json.dumps(sizes))
    arguments = ['plan', config, '--on', target, '--json', str(file)]
    arguments += ['--model.path', str(model), '--reward.path', str(model)]
    assert cli.main(arguments) == 0
    said = json.loads(file.read_text())
    assert {'target', 'config', 'versions', 'programs', 'bounds'} <= said.keys()
    assert said['target'] == target
    assert said['config']['model']['path'] == str(model)
    assert list(said['programs']) == ['draw', 'learn', 'score', 'evaluate', 'weigh']
    for program in said['programs'].values():
        assert program['fits']
        sizes = program['bytes_per_device']
        assert sizes['total'] < sizes['memory']
        assert program['roofline_s'] >= program['matmul_s'] > 0
        assert program['heaviest'][0]['seconds'] > 0
    draw = said['programs']['draw']
    assert {'times': 511, 'exact': False} in [
        {key: loop[key] for key in ('times', 'exact')} for loop in draw['loops']
    ]
    assert draw['steps'] == 512
    assert said['bounds']['pairs_per_s'] > 0
    assert 0 < said['bounds']['mfu'] < 1
    out, err = capfd.readouterr()
    assert 'fits: yes' in out
    assert ('a step' in out) is (library != 'libtpu')
    # Nothing of a compiler's own.
    assert [x for x in err.splitlines() if target not in x and not x.startswith('sail-jax: ')] == []


def test_what_to_change():
    plan = report.Programs(
        programs=(),
        mesh=None,
        resident={'weights': (), 'optimizer': (), 'others': ()},
        per_update={},
        smaller='lower the batch',
        split='split the weights',
    )

    def change(weights, temporaries, chip='h100', error=''):
        sizes = {'weights': weights, 'optimizer': 0, 'others': 0, 'temporaries': temporaries}
        sizes = {name: size * GIB for name, size in sizes.items()}
        sizes['total'] = sum(sizes.values())
        compiled = Compiled('', {}, error, 0.0)
        fits = not error and sizes['total'] <= CHIPS[chip].memory
        planned = report.Planned(None, compiled, None, None, sizes, fits)
        target = report.Target(CHIPS[chip], (1, 1))
        return report.change(report.Report(target, (planned,), plan, Fleet({}, [])))

    assert change(10, 10) is None
    assert 'XLA_PYTHON_CLIENT_MEM_FRACTION=0.95' in change(10, 60)
    assert change(10, 25, 'v6e') == 'lower the batch'
    assert change(30, 10, 'v6e') == 'split the weights; more chips'
    assert change(5, 0, 'v5e', 'takes 21G of a memory of 15G') == 'lower the batch'
    assert change(5, 0, 'v5e', 'INTERNAL: no tiles') is None
