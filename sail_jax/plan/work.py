"""What one instruction of a compiled program does: operations of its matrix products, and bytes
that it reads from and writes to the device's memory.

A fusion reads of an array what its slices take, and writes of an array that it updates in place
what it updates. Everything else is read and written once: what a cache keeps is not known.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable

from sail_jax.plan.hlo import Array, Computation, Instruction, Module, leaves

SLICES = ('dynamic-slice', 'slice', 'gather')
VIEWS = ('bitcast', 'reshape')
VIRTUAL = ('"AllocateBuffer"', '"ConcatBitcast"')
"""A TPU's custom calls that move nothing."""
PALLAS = {'splash_mha_fwd': 2, 'splash_mha_dkv': 4, 'splash_mha_dq': 3}
"""Products of the kernels of splash attention, which do not say what they cost."""
InMemory = Callable[[Array], bool]
"""Whether an array lies in the device's memory, and not in a faster or a slower one."""


def flops(module: Module, computation: Computation, instruction: Instruction) -> dict[str, int]:
    """Operations of matrix products, two for each product and sum, by the precision that they are
    asked for in (`bf16`, `f32`, `f32 highest`), those of a fusion's computation included."""
    match instruction.opcode:
        case 'dot':
            count = _of_dot(computation, instruction)
        case 'convolution':
            count = _of_convolution(computation, instruction)
        case 'custom-call':
            count = _of_custom_call(computation, instruction)
        case 'fusion':
            return _of_computation(module, instruction.called['calls'])
        case _:
            return {}
    return {_precision(computation, instruction): count} if count else {}


def _of_computation(module: Module, name: str) -> dict[str, int]:
    total: dict[str, int] = {}
    computation = module.computations[name]
    for inner in computation.instructions.values():
        for precision, count in flops(module, computation, inner).items():
            total[precision] = total.get(precision, 0) + count
    return total


def _operand(computation: Computation, instruction: Instruction, number: int) -> Array:
    return next(leaves(computation.instructions[instruction.operands[number]].shape))


def _precision(computation: Computation, instruction: Instruction) -> str:
    factors = [_operand(computation, instruction, i) for i in range(len(instruction.operands))]
    # Of a kernel, whose other arguments may be anything.
    dtypes = [array.dtype for array in factors if array.dtype.startswith(('bf', 'f'))][:2]
    # A product of a narrow array with a wide one is one of wide arrays.
    dtype = max(dtypes or [factors[0].dtype], key=lambda x: re.sub(r'\D', '', x).zfill(3))
    match = re.search(r'operand_precision=\{(\w+)', instruction.attributes)
    said = match[1] if match else ''
    return f'{dtype} {said}' if said not in ('', 'default') else dtype


def _of_dot(computation: Computation, instruction: Instruction) -> int:
    left = _operand(computation, instruction, 0)
    contracted = instruction.numbers('lhs_contracting_dims')
    result = next(leaves(instruction.shape))
    return 2 * result.size * math.prod(left.dims[i] for i in contracted)


def _of_custom_call(computation: Computation, instruction: Instruction) -> int:
    """Of cuBLAS; of a kernel that says what it costs."""
    backend = instruction.backend
    if gemm := backend.get('gemm_backend_config'):
        numbers = gemm.get('dot_dimension_numbers', {})
        contracted = [int(i) for i in numbers.get('lhs_contracting_dimensions', ())]
        left = _operand(computation, instruction, 0)
        result = next(leaves(instruction.shape))
        return 2 * result.size * math.prod(left.dims[i] for i in contracted)
    if '__cudnn$fmha' in instruction.attributes:
        return _of_attention(instruction)
    if cost := backend.get('custom_call_config', {}).get('cost_estimate'):
        return int(cost.get('flops', 0))
    for name, products in PALLAS.items():
        if name in instruction.op_name:
            return _of_splash(computation, instruction, products)
    return 0


def _of_attention(instruction: Instruction) -> int:
    """Of cuDNN's fused attention: two products forward, five backward. Of scores that causality
    hides, half of all, it computes next to none."""
    config = instruction.backend['cudnn_fmha_backend_config']
    scores = math.prod(map(int, config['intermediate_tensor_shape']['dimensions']))
    entries = next(leaves(instruction.shape)).dims[-1]
    products = 5 if 'Backward' in instruction.attributes else 2
    return 2 * products * scores * entries // (2 if config.get('mask_type') == 'CAUSAL' else 1)


def _of_splash(computation: Computation, instruction: Instruction, products: int) -> int:
    """Of queries [..., N, T, H] and keys [..., S, H]; its masks are causal here, which leaves half
    of the scores."""
    wide = [
        array
        for name in instruction.operands
        for array in leaves(computation.instructions[name].shape)
        if len(array.dims) >= 3 and array.dtype in ('bf16', 'f32')
    ]
    query, key = wide[:2]
    return products * query.size * key.dims[-2]


def _of_convolution(computation: Computation, instruction: Instruction) -> int:
    """A TPU's matrix products are written so; a batch of them as a window that sees one place."""
    match = re.search(r'dim_labels=(\w+)_(\w+)->(\w+)', instruction.attributes)
    if match is None:
        return 0
    left, kernel = (_operand(computation, instruction, i).dims for i in (0, 1))
    of_left, of_kernel, of_result = match.groups()
    result = next(leaves(instruction.shape)).dims
    window = _window(instruction.attributes)
    valid = 1
    for place, label in enumerate(sorted(filter(str.isdigit, of_kernel))):
        valid *= _valid(
            size=left[of_left.index(label)],
            kernel=kernel[of_kernel.index(label)],
            result=result[of_result.index(label)],
            stride=window('stride', place, 1),
            pad=window('pad', place, 0),
            left_dilate=window('lhs_dilate', place, 1),
            kernel_dilate=window('rhs_dilate', place, 1),
        )
    groups = re.search(r'batch_group_count=(\d+)', instruction.attributes)
    batch = left[of_left.index('b')] // (int(groups[1]) if groups else 1)
    features = kernel[of_kernel.index('i')] * kernel[of_kernel.index('o')]
    return 2 * batch * features * valid


def _window(attributes: str) -> Callable[[str, int, int], int]:
    """Reads `window={size=8x2 pad=0_0x1_1 ...}`: `(key, place, value if absent) -> value`."""
    match = re.search(r'window=\{([^}]*)\}', attributes)
    said = dict(part.split('=') for part in match[1].split()) if match else {}

    def read(key: str, place: int, absent: int) -> int:
        values = said[key].split('x') if key in said else []
        return int(values[place].split('_')[0]) if place < len(values) else absent

    return read


# parameters: those of one axis of a window, all by name
@functools.lru_cache(2**12)
def _valid(
    *,
    size: int,
    kernel: int,
    result: int,
    stride: int,
    pad: int,
    left_dilate: int,
    kernel_dilate: int,
) -> int:
    """Pairs of a place of the result and one of the kernel that meet an entry, not padding."""
    reach, count = (size - 1) * left_dilate + 1, 0
    for k in range(kernel):
        offset = k * kernel_dilate - pad
        if left_dilate == 1:
            first = max(0, -(offset // stride))
            last = min(result - 1, (reach - 1 - offset) // stride)
            count += max(0, last - first + 1)
        else:
            places = (out * stride + offset for out in range(result))
            count += sum(0 <= place < reach and place % left_dilate == 0 for place in places)
    return count


def traffic(
    module: Module, computation: Computation, instruction: Instruction, in_memory: InMemory
) -> int:
    """Bytes read from and written to memory."""
    inside = computation.instructions

    def whole(name: str) -> int:
        return sum(x.bytes for x in leaves(inside[name].shape) if in_memory(x))

    results = [x for x in leaves(instruction.shape) if in_memory(x)]
    match instruction.opcode:
        case 'fusion':
            fused = module.computations[instruction.called['calls']]
            read = sum(_read(module, fused, p.name, in_memory) for p in fused.parameters)
            return read + _written(module, fused, fused.root, in_memory)
        case 'slice-start':
            # ((where it comes from), where it goes, context)
            source, result = list(leaves(instruction.shape))[:2]
            return result.bytes * (in_memory(source) + in_memory(result))
        case 'dynamic-slice' | 'slice' | 'gather':
            result = next(leaves(instruction.shape))
            source = next(leaves(inside[instruction.operands[0]].shape))
            return result.bytes * (in_memory(source) + in_memory(result))
        case 'dynamic-update-slice':
            return 2 * whole(instruction.operands[1])
        case 'scatter':
            return 2 * whole(instruction.operands[-1]) + whole(instruction.operands[-2])
        case 'copy-start':
            # (where it goes, where it comes from, context)
            arrays = list(leaves(instruction.shape))[:2]
            return sum(x.bytes for x in arrays if in_memory(x))
        case 'custom-call' if any(name in instruction.attributes for name in VIRTUAL):
            return 0
        case 'custom-call':
            # What cuBLAS and cuDNN return last is room to work in.
            results = [x for x in results if x.dtype not in ('s8', 'u8')]
    return sum(map(whole, instruction.operands)) + sum(x.bytes for x in results)


def _read(module: Module, computation: Computation, name: str, in_memory: InMemory) -> int:
    """Bytes that a fused computation reads of one of its values."""
    array = next(leaves(computation.instructions[name].shape))
    if not in_memory(array):
        return 0
    if name == computation.root:
        return array.bytes
    total = 0
    for user in computation.users(name):
        numbers = [i for i, operand in enumerate(user.operands) if operand == name]
        if user.opcode in VIEWS:
            total += _read(module, computation, user.name, lambda _: True)
        elif user.opcode in SLICES and numbers == [0]:
            total += next(leaves(user.shape)).bytes
        elif user.opcode in ('dynamic-update-slice', 'scatter') and numbers == [0]:
            continue
        elif user.opcode == 'fusion':
            inner = module.computations[user.called['calls']]
            places = [inner.parameters[i].name for i in numbers]
            total += sum(_read(module, inner, place, lambda _: True) for place in places)
        elif user.opcode in ('get-tuple-element', 'tuple'):
            continue
        else:
            return array.bytes
    return min(total, array.bytes)


def _written(module: Module, computation: Computation, name: str, in_memory: InMemory) -> int:
    """Bytes that a fused computation writes for one of its results."""
    instruction = computation.instructions[name]
    inside = computation.instructions
    match instruction.opcode:
        case 'tuple':
            return sum(_written(module, computation, x, in_memory) for x in instruction.operands)
        case 'dynamic-update-slice' | 'scatter':
            number = 1 if instruction.opcode == 'dynamic-update-slice' else -1
            update = next(leaves(inside[instruction.operands[number]].shape))
            return update.bytes if in_memory(next(leaves(instruction.shape))) else 0
        case 'bitcast' | 'reshape':
            if not in_memory(next(leaves(instruction.shape))):
                return 0
            return _written(module, computation, instruction.operands[0], lambda _: True)
        case 'fusion':
            inner = module.computations[instruction.called['calls']]
            return _written(module, inner, inner.root, in_memory)
    return _bytes(instruction, in_memory)


def _bytes(instruction: Instruction, in_memory: InMemory) -> int:
    return sum(x.bytes for x in leaves(instruction.shape) if in_memory(x))
