"""Compiled texts of both compilers, recorded by `tests.support.compiled`, counted as by hand."""

import math

import pytest

from sail_jax.plan import collectives, count, hlo
from tests.support.compiled import AXES, LAYERS, MOST, ROWS, SLOTS, TEXTS, WIDTH

PLATFORMS = ('cuda', 'tpu')
BATCH, MATRIX = ROWS * WIDTH * 2, WIDTH * WIDTH * 2
"""Bytes in bfloat16, of a device's rows."""
PRODUCT = 2 * ROWS * WIDTH * WIDTH
"""Operations."""


def counted(platform, name):
    return count.count((TEXTS / f'{platform}-{name}.txt').read_text(), platform)


@pytest.mark.parametrize('platform', PLATFORMS)
def test_a_product(platform):
    one = counted(platform, 'matmul')
    assert one.flops_by_precision == {'bf16': PRODUCT}
    assert one.traffic_bytes == BATCH + MATRIX + BATCH


@pytest.mark.parametrize('platform', PLATFORMS)
def test_a_scan_of_products(platform):
    scan = counted(platform, 'scan')
    assert [(loop.count, loop.exact) for loop in scan.loops] == [(LAYERS, True)]
    assert scan.flops == LAYERS * PRODUCT
    # On the GPU the activation is a kernel of its own, and matrices are copied out of their stack;
    # a TPU keeps the batch in its vector memory: only its first and last are in memory.
    each = {'cuda': 2 * MATRIX + (2 * BATCH + MATRIX) + 2 * BATCH, 'tpu': MATRIX}[platform]
    ends = 2 * BATCH
    counters = 4 * 2**8
    assert LAYERS * each + ends <= scan.traffic_bytes < LAYERS * each + ends + counters


@pytest.mark.parametrize('platform', PLATFORMS)
def test_an_update_in_place_touches_what_it_writes(platform):
    written, slot = counted(platform, 'in_place'), ROWS * WIDTH * 4
    assert [loop.count for loop in written.loops] == [SLOTS]
    assert 2 * SLOTS * slot <= written.traffic_bytes < 2 * SLOTS * slot + 2**14
    assert written.flops == 0


@pytest.mark.parametrize('platform', PLATFORMS)
def test_a_loop_that_may_end_early_goes_round_as_often_as_it_may(platform):
    early = counted(platform, 'early')
    assert [(loop.count, loop.exact) for loop in early.loops] == [(MOST, False)]
    assert early.flops == MOST * PRODUCT


@pytest.mark.parametrize('platform', PLATFORMS)
def test_loops_that_share_a_counter_have_its_rounds_together(platform):
    """As drawing has: when half of the lanes have ended the others go on where these were."""
    shared = counted(platform, 'handed_on')
    assert [(loop.count, loop.exact) for loop in shared.loops] == [(MOST, False), (0, False)]
    assert shared.flops == MOST * PRODUCT


@pytest.mark.parametrize('platform', PLATFORMS)
@pytest.mark.parametrize(
    ('name', 'kind', 'times', 'size', 'sent', 'axes', 'across'),
    [
        ('all_reduce', 'all-reduce', 1, WIDTH * 4, 2 * 7 / 8, 'data+fsdp', True),
        ('gathered', 'all-gather', LAYERS, MATRIX, 3 / 4, 'fsdp', False),
    ],
)
# parameters: one case each
def test_who_talks_to_whom(platform, name, kind, times, size, sent, axes, across):
    exchanges = [x for x in counted(platform, name).operations if x.collective]
    (exchange,) = exchanges
    said = exchange.collective
    assert (said.kind, exchange.times) == (kind, times)
    assert said.bytes == size
    assert said.wire_bytes == sent * size
    assert collectives.axes_of(said.groups, AXES) == axes
    hosts = [0] * 4 + [1] * 4
    assert collectives.across_hosts(said.groups, hosts) is across


@pytest.mark.parametrize(
    ('groups', 'expected'),
    [
        (((0, 1, 2, 3), (4, 5, 6, 7)), 'fsdp'),
        (((0, 1), (2, 3), (4, 5), (6, 7)), 'fsdp'),
        (((0, 1), (1, 2), (2, 3), (3, 0)), 'fsdp'),
        (((0,), (1, 5)), 'data'),
        (((0, 5), (5, 0)), 'data+fsdp'),
        ((tuple(range(8)),), 'data+fsdp'),
    ],
    ids=str,
)
def test_an_exchange_is_along_the_axes_in_which_its_devices_differ(groups, expected):
    assert collectives.axes_of(groups, AXES) == expected


@pytest.mark.parametrize('platform', PLATFORMS)
def test_operations_know_their_line(platform):
    product = next(x for x in counted(platform, 'scan').operations if x.flops)
    assert product.lines[0].function == 'programs.<locals>.scan.<locals>.<lambda>'
    assert product.lines[0].file == '/tests/support/compiled.py'
    # Callers follow, to the outermost.
    assert product.lines[-1].function == '_run_module_as_main'
    source = (TEXTS.parents[1] / 'support' / 'compiled.py').read_text().splitlines()
    assert 'jnp.tanh(x @ w)' in source[product.lines[0].line - 1]


@pytest.mark.parametrize('text', sorted(TEXTS.glob('*.txt')), ids=lambda file: file.stem)
def test_what_the_compiler_adds_has_the_line_of_what_it_is_for(text):
    one = count.count(text.read_text(), text.stem.partition('-')[0])
    assert all(x.lines for x in one.operations)


FRAMES = """
FileNames
1 "/sail_jax/a.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=1 function_name_id=1 line=2}
3 {file_name_id=1 function_name_id=1 line=3}

StackFrames
1 {file_location_id=1 parent_frame_id=0}
2 {file_location_id=2 parent_frame_id=0}
3 {file_location_id=3 parent_frame_id=0}

%body (s: (f32[8], f32[8], f32[8])) -> (f32[8], f32[8], f32[8]) {
  %s = (f32[8], f32[8], f32[8]) parameter(0)
  %a = f32[8] get-tuple-element(%s), index=0
  %b = f32[8] get-tuple-element(%s), index=1
  %c = f32[8] get-tuple-element(%s), index=2
  %sine = f32[8] sine(%a), metadata={stack_frame_id=1}
  %cosine = f32[8] cosine(%b), metadata={stack_frame_id=2}
  %ahead = (f32[8], f32[8], u32[]) copy-start(%c)
  %arrived = f32[8] copy-done(%ahead)
  %spare = f32[8] copy(%cosine)
  ROOT %next = (f32[8], f32[8], f32[8]) tuple(%sine, %arrived, %spare)
}
"""


def test_a_line_is_borrowed_from_the_next_round_of_a_loop_or_from_what_is_read():
    """What a round fetches for the next one is used by what reads that part of the state; a result
    that nobody uses comes from what it was made of."""
    condition = '%condition (s: f32[]) -> pred[] {\n  ROOT %c = pred[] constant(false)\n}\n'
    loop = '(f32[8], f32[8], f32[8]) while(%p), condition=%condition, body=%body'
    main = module(
        '%p = (f32[8], f32[8], f32[8]) parameter(0)',
        f'%w = {loop}, metadata={{stack_frame_id=3}}',
        '%kept = f32[8] get-tuple-element(%w), index=1',
        'ROOT %out = f32[8] copy(%kept)',
    ).removeprefix('HloModule m, num_partitions=1\n')
    one = count.count(f'HloModule m, num_partitions=1\n{FRAMES}\n{condition}\n{main}', 'tpu')
    lines = {x.name: [line.line for line in x.lines] for x in one.operations}
    assert lines == {'sine': [1], 'cosine': [2], 'ahead': [2], 'spare': [2], 'out': [3]}


@pytest.mark.parametrize(
    ('said', 'groups'),
    [
        ('replica_groups={{0,1},{2,3}}, dimensions={0}', ((0, 1), (2, 3))),
        ('replica_groups=[2,2]<=[4], dimensions={0}', ((0, 1), (2, 3))),
        ('replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%a', ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, to_apply=%a", ((0, 2), (1, 3))),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, to_apply=%a", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, to_apply=%a", ((0, 2), (1, 3))),
        (
            "replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}, dimensions={0}",
            ((0, 1), (2, 3)),
        ),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,0,1,2) {'b'}, to=%a", ((3, 0), (1, 2))),
        ('source_target_pairs={{0,1},{1,2}}, metadata={}', ((0, 1), (1, 2))),
        ('channel_id=1', ((0, 1, 2, 3),)),
    ],
)
def test_groups_in_all_notations(said, groups):
    assert collectives.of_attributes(said, 4) == groups


@pytest.mark.parametrize(
    ('text', 'size'),
    [
        ('f32[3,5]{1,0}', 60),
        ('f32[3,5]{1,0:T(8,128)}', 8 * 128 * 4),
        ('f32[3,5]{0,1:T(8,128)}', 8 * 128 * 4),
        ('bf16[2,9,130]{2,1,0:T(8,128)(2,1)}', 2 * 16 * 256 * 2),
        ('pred[]', 1),
        ('s4[6]{0}', 3),
        ('f8e4m3fn[6]{0}', 6),
    ],
)
def test_bytes_as_they_lie(text, size):
    array = hlo.parse(module(f'ROOT %a = {text} parameter(0)')).computations['main']
    (leaf,) = hlo.leaves(array.instructions['a'].shape)
    assert leaf.bytes == size


def module(*lines):
    body = '\n'.join(f'  {line}' for line in lines)
    return f'HloModule m, num_partitions=1\n\nENTRY %main (p: f32[1]) -> f32[1] {{\n{body}\n}}\n'


@pytest.mark.parametrize(
    ('labels', 'left', 'kernel', 'result', 'window', 'products'),
    [
        # A batch of 6 products [4, 5] x [5, 3], as a TPU's compiler writes it.
        ('0bf_0io->0bf', '6,4,5', '6,5,3', '6,4,3', 'size=6 stride=5 pad=0_0 lhs_dilate=6', 360),
        # A convolution of 3 places over 8, padded to 8: 22 pairs of places meet.
        ('b0f_0io->b0f', '2,8,5', '3,5,3', '2,8,3', 'size=3 pad=1_1', 2 * 5 * 3 * 22),
        # One product [16, 5] x [5, 6], the matrix in two halves; the window's axes are in the order
        # of their numbers, not of the kernel's.
        ('0bf1_i1o0->0b1f', '2,8,5,1', '5,2,3,1', '2,8,2,3', 'size=1x2 pad=0_0x1_1', 480),
    ],
)
# parameters: one case each
def test_products_written_as_convolutions(labels, left, kernel, result, window, products):
    text = module(
        f'%a = f32[{left}] parameter(0)',
        f'%b = f32[{kernel}] parameter(1)',
        f'ROOT %c = f32[{result}] convolution(%a, %b), window={{{window}}}, dim_labels={labels}',
    )
    assert count.count(text, 'tpu').flops == 2 * products


@pytest.mark.parametrize(
    ('attributes', 'precision'),
    [('', 'f32'), (', operand_precision={highest,highest}', 'f32 highest')],
)
def test_products_say_their_precision(attributes, precision):
    text = module(
        '%a = f32[8,16] parameter(0)',
        '%b = f32[16,4] parameter(1)',
        f'ROOT %c = f32[8,4] dot(%a, %b), lhs_contracting_dims={{1}}{attributes}',
    )
    one = count.count(text, 'cuda')
    assert one.flops_by_precision == {precision: 2 * 8 * 16 * 4}
    assert one.traffic_bytes == 4 * math.fsum((8 * 16, 16 * 4, 8 * 4))


def test_a_slice_that_is_fetched_reads_what_it_takes():
    text = module(
        '%a = bf16[8,1024]{1,0:T(8,128)(2,1)} parameter(0)',
        '%s = ((bf16[8,1024]{1,0:T(8,128)(2,1)}), bf16[8,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:S(2)})'
        ' slice-start(%a), slice={[0:8], [0:256]}',
        'ROOT %d = bf16[8,256]{1,0:T(8,128)(2,1)S(1)} slice-done(%s)',
    )
    assert count.count(text, 'tpu').traffic_bytes == 8 * 256 * 2


QUERY, KEY = 'bf16[4,14,512,64]', 'bf16[4,2,512,64]'
FUSED = """backend_config={"cudnn_fmha_backend_config":
{"intermediate_tensor_shape":{"dimensions":["4","14","512","512"]},"mask_type":"HIDES"}}"""


@pytest.mark.parametrize(
    ('name', 'result', 'mask', 'products'),
    [
        ('fmhaSoftmax', QUERY, 'NO_MASK', 2),
        ('fmhaSoftmax', QUERY, 'CAUSAL', 1),
        ('fmhaSoftmaxBackward', QUERY, 'CAUSAL', 2.5),
    ],
)
def test_fused_attention_of_a_gpu(name, result, mask, products):
    text = module(
        f'%q = {QUERY} parameter(0)',
        f'%k = {KEY} parameter(1)',
        f'ROOT %a = ({result}, u8[999]) custom-call(%q, %k, %k), '
        f'custom_call_target="__cudnn${name}", {FUSED.replace("HIDES", mask)}',
    )
    one = count.count(text, 'cuda')
    assert one.flops_by_precision == {'bf16': products * 2 * 4 * 14 * 512 * 512 * 64}
    query, key = 4 * 14 * 512 * 64 * 2, 4 * 2 * 512 * 64 * 2
    assert one.traffic_bytes == 2 * query + 2 * key  # Neither scores nor room to work in.


def test_fused_attention_of_a_tpu_whose_attributes_have_several_lines():
    text = module(
        '%m = s8[1,4,4] parameter(0)',
        '%q = bf16[4,8,512,128] parameter(1)',
        'ROOT %a = bf16[4,8,512,128] custom-call(%m, %q, %q, %q), '
        'custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={',
    ).replace(
        'kernel_metadata={\n}',
        'kernel_metadata={\n"q": 1\n}}, metadata={op_name="jit(f)/splash_mha_fwd/pallas_call"}\n}',
    )
    one = count.count(text, 'tpu')
    assert one.flops_by_precision == {'bf16': 2 * 4 * 8 * 512 * 512 * 128}
    assert one.kernels == 1


def test_what_is_no_program():
    with pytest.raises(ValueError, match='no text of a compiled program'):
        hlo.parse('nothing')
