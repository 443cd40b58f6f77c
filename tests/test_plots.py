"""What is drawn of runs: which numbers, which lines and bands, under which names."""

import json
import re
import tracemalloc

import numpy as np
import pytest

import sail_jax
from sail_jax import configfile, plots
from sail_jax.cli import main
from sail_jax.control.config import ControlRun
from sail_jax.errors import UserError

KL = {'eval/kl_policy_to_start': 0.1, 'eval/kl_start_to_policy': 0.2}


def write(path, values, **settings):
    """A run directory whose evaluations have these returns; each update has a margin too."""
    path.mkdir()
    configfile.write(configfile.update(ControlRun(), settings), path / 'config.yaml')
    rows = []
    for step, value in enumerate(values):
        row = {'step': step, 'env_steps': 100 * step, 'labels': step, 'wall_s': 1.0 + step}
        rows.append(row | KL | {'eval/return': value, 'train/margin': -value, 'train/odd': step})
    (path / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def lines(picture, axis=0):
    """Points of an axis's lines, by name."""
    return {line.get_label(): line.get_xydata() for line in picture.axes[axis].lines}


def band(picture):
    """The lowest and the highest of the first axis's band at each point."""
    (collection,) = picture.axes[0].collections
    vertices = collection.get_paths()[0].vertices
    grid = np.unique(vertices[:, 0])
    return [(vertices[vertices[:, 0] == x, 1].min(), vertices[:, 1][vertices[:, 0] == x].max())
            for x in grid]  # fmt: skip


def texts(picture):
    return [text.get_text() for legend in picture.legends for text in legend.get_texts()]


def rows_drawn(picture):
    return [axis.get_ylabel().replace('\n', ' ') for axis in picture.axes if axis.get_ylabel()]


def test_seeds_become_their_mean_and_range(tmp_path):
    runs = [write(tmp_path / f'r{s}', [s, 2.0 * s], seed=s) for s in range(4)]
    picture = sail_jax.plot(runs)
    assert texts(picture) == ['r0 (4 seeds)']
    np.testing.assert_allclose(lines(picture)['r0 (4 seeds)'], [[0, 1.5], [100, 3]])
    assert band(picture) == [(0, 3), (0, 6)]
    assert 'mean' in picture.legends[0].get_title().get_text()


def test_a_bootstrap_band_is_of_the_interquartile_mean(tmp_path):
    values = [0.0, 1.0, 2.0, 100.0]
    runs = [write(tmp_path / f'r{s}', [v, v], seed=s) for s, v in enumerate(values)]
    picture = sail_jax.plot(runs, band='bootstrap')
    assert lines(picture)['r0 (4 seeds)'][0, 1] == 1.5, 'the outlier is not of the middle half'
    (low, high), *_ = band(picture)
    # Of all 256 resamples, the middle two's mean.
    each = np.stack(np.meshgrid(*[values] * 4), -1).reshape(-1, 4)
    exact = np.percentile(np.sort(each, 1)[:, 1:3].mean(1), (2.5, 97.5))
    np.testing.assert_allclose((low, high), exact, atol=0.6)
    assert 'interquartile mean' in picture.legends[0].get_title().get_text()


def test_smoothing_takes_the_points_before(tmp_path):
    run = write(tmp_path / 'run', [1.0, 3.0, 8.0, 4.0])
    assert lines(sail_jax.plot(run, smooth=2))['run'][:, 1].tolist() == [1.0, 2.0, 5.5, 6.0]
    assert lines(sail_jax.plot(run, smooth=np.int64(9)))['run'][:, 1].tolist() == [
        1.0,
        2.0,
        4.0,
        4.0,
    ]


def test_the_kl_that_is_penalised_is_drawn(tmp_path):
    default = write(tmp_path / 'default', [1.0])
    other = write(tmp_path / 'other', [1.0], **{'divergence.direction': 'policy_to_ref'})
    free = write(tmp_path / 'free', [1.0], **{'divergence.coefficient': 0.0})
    both = 'KL(start || policy), nats per step'
    assert both in rows_drawn(sail_jax.plot(default))
    assert both in rows_drawn(sail_jax.plot([free, default]))
    for run in (other, free):
        drawn = rows_drawn(sail_jax.plot(run))
        assert both not in drawn
        assert 'KL(policy || start), nats per step' in drawn


def test_metrics_that_are_asked_for_are_drawn_and_no_other(tmp_path):
    run, out = write(tmp_path / 'run', [1.0, 2.0]), tmp_path / 'plot.svg'
    picture = sail_jax.plot(run, metrics=['train/margin', 'eval/return'])
    assert rows_drawn(picture) == ['train/margin', 'return (stochastic policy)']
    assert lines(picture)['run'][:, 1].tolist() == [-1.0, -2.0]
    assert rows_drawn(sail_jax.plot(run, metrics='train/odd')) == ['train/odd']
    options = ['--metric', 'train/margin', '--metric', 'train/odd', '--smooth', '2']
    assert main(['plot', str(run), *options, '--band', 'bootstrap', '--out', str(out)]) == 0
    assert out.stat().st_size > 1000


def test_a_metric_that_there_is_not_is_one_line(tmp_path):
    run = write(tmp_path / 'run', [1.0])
    with pytest.raises(UserError, match=r"no 'train/margn'; did you mean train/margin\?$"):
        sail_jax.plot(run, metrics='train/margn')
    for wrong in (
        {'smooth': 0},
        {'smooth': 1.5},
        {'smooth': True},
        {'smooth': 10**30},
        {'band': 'std'},
    ):
        with pytest.raises(UserError, match=f'^{next(iter(wrong))}: should be '):
            sail_jax.plot(run, **wrong)


def test_a_run_without_a_number_is_named(tmp_path):
    broken, sound = write(tmp_path / 'broken', [0.0]), write(tmp_path / 'sound', [1.0])
    rows = (broken / 'metrics.jsonl').read_text()
    (broken / 'metrics.jsonl').write_text(rows.replace('"eval/return": 0.0', '"eval/return": null'))
    with pytest.raises(UserError, match=r"broken/metrics.jsonl: 'eval/return': no row has"):
        sail_jax.plot(broken, metrics='eval/return')
    picture = sail_jax.plot([broken, sound], metrics='eval/return')
    assert texts(picture) == ['sound'], 'not called two runs'
    assert len(picture.left_out) == 1


def test_a_run_whose_returns_are_all_missing_is_named_where_nothing_is_asked_for(tmp_path):
    """It has its KLs."""
    broken, sound = write(tmp_path / 'r0', [0.0], seed=0), write(tmp_path / 'r1', [1.0], seed=1)
    rows = (broken / 'metrics.jsonl').read_text()
    (broken / 'metrics.jsonl').write_text(rows.replace('"eval/return": 0.0', '"eval/return": null'))
    picture = sail_jax.plot([broken, sound])
    assert texts(picture) == ['r1'], 'not called two seeds'
    assert len(picture.left_out) == 1


def test_a_mean_begins_where_all_runs_have_numbers(tmp_path):
    runs = [write(tmp_path / f'r{s}', [s, s + 1.0, s + 2.0], seed=s) for s in range(2)]
    rows = (runs[1] / 'metrics.jsonl').read_text()
    (runs[1] / 'metrics.jsonl').write_text(rows.replace('"eval/return": 1,', ''))
    for style in ('range', 'bootstrap'):
        drawn = lines(sail_jax.plot(runs, metrics='eval/return', band=style))['r0 (2 seeds)']
        assert drawn.tolist() == [[100, 1.5], [200, 2.5]]
    (runs[0] / 'metrics.jsonl').write_text(rows.splitlines()[0] + '\n')
    picture = sail_jax.plot(runs, tmp_path / 'out.png', metrics='eval/return', band='bootstrap')
    assert len(lines(picture)['r0 (2 seeds)']) == 0, 'they have no point in common'


def test_a_sweep_is_drawn_without_the_members_that_are_not_begun(tmp_path):
    """Those of language runs are trained in turn."""
    sweep = tmp_path / 'sweep'
    sweep.mkdir()
    configfile.write(configfile.update(ControlRun(), {'seeds': (0, 1)}), sweep / 'config.yaml')
    write(sweep / 'seed-0', [1.0, 2.0])
    picture = sail_jax.plot(sweep)
    assert lines(picture)['sweep'][:, 1].tolist() == [1.0, 2.0]
    (error,) = picture.left_out
    assert 'seed-1/metrics.jsonl: No such file' in str(error)


def test_the_bootstrap_of_many_points_is_computed_in_parts(monkeypatch):
    monkeypatch.setattr(plots, 'RESAMPLES', 100)
    values = np.arange(100_000.0).reshape(2, -1)
    tracemalloc.start()
    band = plots.bootstrap(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
    np.testing.assert_array_equal(band, values)


def test_dollars_in_names_are_no_formulas(tmp_path):
    run = write(tmp_path / r'a$\frac{x$', [1.0])
    assert sail_jax.plot(run, tmp_path / 'out.svg').left_out == ()


def test_legends_have_both_sides_of_a_difference(tmp_path):
    runs = [
        write(tmp_path / 'a', [1.0], env={'name': 'ant'}, segment_reward='gentle'),
        write(tmp_path / 'b', [1.0], env={'name': 'hopper'}, **{'evaluation.episodes': 8}),
    ]
    assert texts(sail_jax.plot(runs)) == [
        'a: env.name ant, segment_reward gentle, evaluation.episodes 128',
        'b: env.name hopper, segment_reward none, evaluation.episodes 8',
    ]


def test_eight_curves_can_be_told_apart(tmp_path):
    betas = [0.1 * (1 + i) for i in range(8)]
    runs = [
        write(tmp_path / f'r{i}', [1.0, 2.0], **{'objective.beta': b}) for i, b in enumerate(betas)
    ]
    picture = sail_jax.plot(runs)
    looks = {(line.get_color(), str(line.get_linestyle())) for line in picture.axes[0].lines}
    assert len(looks) == 8
    assert len({plots.look(i)['color'] for i in range(7)}) == 7
    assert len({str(plots.look(i)) for i in range(28)}) == 28
    picture.draw_without_rendering()
    legend = picture.legends[0].get_window_extent()
    assert all(not legend.overlaps(axis.get_window_extent()) for axis in picture.axes)


def test_a_figure_does_not_touch_the_users_backend(tmp_path):
    run = write(tmp_path / 'run', [1.0])
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert re.match(rb'\x89PNG', sail_jax.plot(run)._repr_png_())
    assert plt.get_fignums() == before
