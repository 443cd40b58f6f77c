"""Both compilers, for devices that are not there: what was recorded of them is what they say."""

import pytest

from tests.support.compiled import TARGETS, TEXTS, texts

LIBRARIES = {'cuda': 'jax_cuda12_plugin', 'tpu': 'libtpu'}


@pytest.mark.slow
@pytest.mark.parametrize('platform', TARGETS)
def test_recorded_texts_count_as_those_of_today(platform):
    pytest.importorskip(LIBRARIES[platform])
    from sail_jax.plan import count

    for name, text in texts(platform).items():
        recorded = count.count((TEXTS / f'{platform}-{name}.txt').read_text(), platform)
        today = count.count(text, platform)
        assert today.flops_by_precision == recorded.flops_by_precision, name
        assert today.traffic_bytes == recorded.traffic_bytes, name
        assert [x.count for x in today.loops] == [x.count for x in recorded.loops], name
        assert all(x.lines for x in today.operations), name
        assert exchanges(today) == exchanges(recorded), name


def exchanges(counted):
    together = [(x.collective, x.times) for x in counted.operations]
    return [(one.kind, one.bytes, times) for one, times in together if one is not None]
