"""What `--on` takes, and the numbers that times come of."""

import pytest

from sail_jax.errors import UserError
from sail_jax.plan import collectives, roofline, targets
from sail_jax.plan.collectives import Collective, Fleet
from sail_jax.plan.targets import CHIPS


@pytest.mark.parametrize(
    ('text', 'name', 'shape', 'count', 'said'),
    [
        ('h100:8', 'h100', (1, 8), 8, 'h100:8'),
        ('H100:16x8', 'h100', (16, 8), 128, 'h100:16x8'),
        ('v5e:4x4', 'v5e', (4, 4), 16, 'v5e:4x4'),
        ('v5p:2x2x2', 'v5p', (2, 2, 2), 8, 'v5p:2x2x2'),
    ],
)
# parameters: one case each
def test_targets(text, name, shape, count, said):
    target = targets.parse(text)
    assert (target.chip.name, target.shape, target.count, str(target)) == (name, shape, count, said)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('h10:8', "no chip 'h10'; did you mean h100?"),
        ('gpu:8', "no chip 'gpu'; known: a100, h100"),
        ('h100', 'expected GPUs, or hosts x GPUs, up to 16,384: h100:8, h100:16x8'),
        ('h100:0', 'expected GPUs'),
        ('h100:2x2x2', 'expected GPUs'),
        ('h100:\uff18', 'expected GPUs'),
        ('h100:99999x99999', 'expected GPUs'),
        ('v5e:8', 'expected a slice, up to 16,384 chips: v5e:2x4, v5e:16x16'),
        ('v5p:2x2', 'expected a slice, up to 16,384 chips: v5p:2x2x1, v5p:2x2x4'),
        ('v5e:4x', 'expected a slice'),
    ],
)
def test_what_is_no_target(text, message):
    with pytest.raises(UserError, match=f'--on {text}: ') as error:
        targets.parse(text)
    assert message in str(error.value)


def test_float32_is_what_the_chip_makes_of_it():
    h100, v5e = CHIPS['h100'], CHIPS['v5e']
    assert h100.flops_of('bf16') == 989.4e12
    assert h100.flops_of('f32') == h100.flops / 2  # TF32
    assert h100.flops_of('f32 highest') == 67e12
    assert v5e.flops_of('f32') == 197e12  # one pass of bfloat16
    assert v5e.flops_of('f32 high') == 197e12 / 3
    assert v5e.flops_of('f32 highest') == 197e12 / 6


def test_an_exchange_across_hosts_shares_their_network():
    h100, size = CHIPS['h100'], 10**9
    everybody = Collective('all-gather', size, round(size * 15 / 16), (tuple(range(16)),))
    one_host = Fleet({'data': 16}, [0] * 16)
    two = Fleet({'data': 16}, [0] * 8 + [1] * 8)
    assert roofline.exchange_s(everybody, h100, one_host) == pytest.approx(size * 15 / 16 / 450e9)
    # A host sends what it has, half of it, by eight cards of 50 GB/s; for permutes by one each.
    assert roofline.exchange_s(everybody, h100, two) == pytest.approx(size * 15 / 16 / 450e9)
    slow = h100._replace(network=5e9)
    assert roofline.exchange_s(everybody, slow, two) == pytest.approx(size / 2 / (8 * 5e9))
    permute = Collective('collective-permute', size, size, everybody.groups)
    assert roofline.exchange_s(permute, h100, two) == size / 50e9
    assert collectives.axes_of(everybody.groups, two.axes) == 'data'
