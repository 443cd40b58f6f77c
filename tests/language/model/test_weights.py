import json
import os
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sail_jax.errors import UserError
from sail_jax.language.adapter import Lora
from sail_jax.language.model import architecture, lora, weights
from sail_jax.language.model.transformer import Decoder
from tests.support import tiny
from tests.support.tiny import FAMILIES, assert_same_bits


def tensors(path):
    found = {}
    for file in path.glob('*.safetensors'):
        found |= load_file(file)
    return found


@pytest.fixture
def saved(tmp_path):
    return weights.save(tiny.decoder('llama3'), tmp_path / 'model')


@pytest.mark.parametrize(
    ('dtype', 'shard_bytes'), [(jnp.float32, 10**9), (jnp.bfloat16, 2000), (jnp.float16, 2000)]
)
@pytest.mark.parametrize('name', FAMILIES)
def test_round_trip_is_bit_exact(tmp_path, name, dtype, shard_bytes):
    first = weights.save(tiny.decoder(name), tmp_path / 'a', dtype=dtype)
    second = weights.save(
        weights.load(first), tmp_path / 'b', source=first, shard_bytes=shard_bytes
    )
    third = weights.save(weights.load(second), tmp_path / 'c', source=second)
    assert len(list(second.glob('*.safetensors'))) > 2 or shard_bytes > 2000
    for file in second.glob('*.safetensors'):
        largest = max(x.nbytes for x in load_file(file).values())
        assert sum(x.nbytes for x in load_file(file).values()) <= max(shard_bytes, largest)
    assert_same_bits(tensors(first), tensors(second))
    assert (first / 'model.safetensors').read_bytes() == (third / 'model.safetensors').read_bytes()
    assert (first / 'config.json').read_bytes() == (third / 'config.json').read_bytes()


def test_who_may_read_the_directory_may_read_the_weights(tmp_path):
    before = os.umask(0o027)
    try:
        model = weights.save(tiny.decoder('qwen2'), tmp_path / 'model')
        adapted = lora.add(tiny.decoder('qwen2'), Lora(rank=2), jax.random.key(0))
        adapter = lora.save(adapted, Lora(rank=2), tmp_path / 'adapter')
    finally:
        os.umask(before)
    for path in (*model.iterdir(), *adapter.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o640, path


def test_load_restores_every_parameter(tmp_path):
    decoder = tiny.decoder('llama-biases')
    loaded = weights.load(weights.save(decoder, tmp_path / 'a'))
    assert loaded.architecture == decoder.architecture
    ours, theirs = nnx.to_pure_dict(nnx.state(decoder)), nnx.to_pure_dict(nnx.state(loaded))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_bfloat16_file_as_float32_parameters_goes_back_without_loss(tmp_path):
    first = weights.save(tiny.decoder(), tmp_path / 'a', dtype=jnp.bfloat16)
    loaded = weights.load(first, param_dtype=jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(loaded))} == {jnp.dtype('float32')}
    second = weights.save(loaded, tmp_path / 'b', source=first, dtype=jnp.bfloat16)
    assert_same_bits(tensors(first), tensors(second))
    assert json.loads((second / 'config.json').read_text())['dtype'] == 'bfloat16'


SHARDED = """
import sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from flax import nnx
from sail_jax.language.model import weights
from tests.support.counted import copied

mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ('fsdp', 'tensor'))
sharding = lambda name, shape: NamedSharding(
    mesh, P(*[None] * (len(shape) - 2), 'fsdp', 'tensor') if name.endswith('.kernel') else P()
)
whole, parts = weights.load(sys.argv[1]), weights.load(sys.argv[1], sharding=sharding)
a, b = weights.parameters(whole), weights.parameters(parts)
for name in a:
    np.testing.assert_array_equal(a[name][...], b[name][...])
    shard = b[name][...].addressable_shards[0].data
    assert shard.size * (8 if name.endswith('.kernel') else 1) == a[name][...].size, name
weights.save(parts, sys.argv[2])

# Two devices, or all of them, hold the same part: it is read once.
read = copied()
columns = lambda name, shape: NamedSharding(
    mesh, P(*[None] * (len(shape) - 1), 'tensor') if name.endswith('.kernel') else P()
)
weights.load(sys.argv[1], sharding=columns)
assert sum(read) == sum(x[...].nbytes for x in a.values()), read
"""


def test_each_part_is_read_once_for_the_devices_that_hold_it(tmp_path):
    saved = weights.save(tiny.decoder('llama3', update={'vocab_size': 64}), tmp_path / 'model')
    flags = {'XLA_FLAGS': '--xla_force_host_platform_device_count=8', 'JAX_PLATFORMS': 'cpu'}
    arguments = [sys.executable, '-c', SHARDED, str(saved), str(tmp_path / 'out')]
    subprocess.run(arguments, check=True, env=os.environ | flags)
    assert_same_bits(tensors(saved), tensors(tmp_path / 'out'))


def test_load_holds_no_second_copy(tmp_path):
    update = {'layers': 8, 'hidden_size': 64, 'intermediate_size': 256}
    path = weights.save(tiny.decoder('llama2', update=update), tmp_path / 'a')
    total = (path / 'model.safetensors').stat().st_size
    tracemalloc.start()
    weights.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * total


def rewrite(path, change):
    content = load_file(path / 'model.safetensors')
    change(content)
    save_file(content, path / 'model.safetensors', metadata={'format': 'pt'})


def refuse(path, message):
    with pytest.raises(UserError, match=message) as caught:
        weights.load(path)
    assert '\n' not in str(caught.value)
    assert str(path) in str(caught.value)


NAME = 'model.layers.1.mlp.up_proj.weight'


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda x: x.pop(NAME), f'tensors missing: {NAME} \\(1 in all\\)'),
        (
            lambda x: x.pop('lm_head.weight'),
            'no lm_head.weight, and config.json has tie_word_embeddings: false',
        ),
        (
            lambda x: x.update({'score.weight': x.pop('lm_head.weight')}),
            'a reward model, not a language model: it has score.weight; reward.path takes it',
        ),
        (
            lambda x: x.update({'score.weight': x['lm_head.weight'][:1].copy()}),
            'a reward model, not a language model: it has score.weight; reward.path takes it',
        ),
        (
            lambda x: x.update({'lm_heads.weight': x.pop('lm_head.weight')}),
            'tensors missing: lm_head.weight .*; there is lm_heads.weight',
        ),
        (
            lambda x: x.update({NAME.replace('weight', 'qweight'): x.pop(NAME).astype(np.int32)}),
            r'q?_?proj.qweight: quantised weights are not read',
        ),
        (
            lambda x: x.update({f'{NAME}_scale_inv': x[NAME][:1, :1].copy()}),
            'weight_scale_inv: quantised weights are not read',
        ),
        (
            lambda x: x.update({f'{NAME}.absmax': x[NAME][:1, 0].copy()}),
            'weight.absmax: quantised weights are not read',
        ),
        (lambda x: x.update(score=x[NAME]), 'that the model does not have: score'),
        (
            lambda x: x.update({NAME: x[NAME][:-1].copy()}),
            f'{NAME}: shape \\(23, 16\\); .*\\(24, 16\\)',
        ),
        (lambda x: x.update({NAME: x[NAME].T.copy()}), f'{NAME}: shape \\(16, 24\\)'),
        (
            lambda x: x.update({NAME: x[NAME].astype(np.int8)}),
            f'{NAME}: type I8; expected F32.*; quantised',
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved, change, message):
    rewrite(saved, change)
    refuse(saved, message)


def test_tensors_in_double_precision_are_read_as_float32(saved):
    before = tensors(saved)
    rewrite(saved, lambda x: x.update({name: x[name].astype(np.float64) for name in x}))
    assert_same_bits(before, tensors(weights.save(weights.load(saved), saved.parent / 'again')))


def test_tied_checkpoint_may_repeat_the_matrix_but_not_with_other_values(tmp_path):
    path = weights.save(tiny.decoder('qwen2'), tmp_path / 'a')
    add = lambda x: x.update({'lm_head.weight': x['model.embed_tokens.weight'].copy()})
    rewrite(path, add)
    weights.load(path)
    config = json.loads((path / 'config.json').read_text())
    for change, how in [
        (lambda x: 1.001 * x, r'apart by up to 0\.001 of the largest entry'),
        (lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, np.nan, x), 'apart by up to'),
        (lambda x: x[:-1].copy(), r'shapes \(61, 16\) and \(60, 16\)'),
    ]:
        rewrite(path, add)
        rewrite(path, lambda x: x.update({'lm_head.weight': change(x['lm_head.weight'])}))  # noqa: B023
        refuse(path, f'lm_head.weight is not .*{how}.*tie_word_embeddings: true; set it to false')
    rewrite(path, add)
    rewrite(path, lambda x: x.update({'lm_head.weight': 2 * x['lm_head.weight']}))
    (path / 'config.json').write_text(json.dumps(config | {'tie_word_embeddings': False}))
    assert not weights.load(path).architecture.tied


def test_base_model_without_prefix_is_the_model_if_its_head_is_the_embedding(tmp_path):
    def without_prefix(x):
        for name in list(x):
            x[name.removeprefix('model.')] = x.pop(name)

    tied = weights.save(tiny.decoder('qwen2'), tmp_path / 'tied')
    whole = tensors(tied)
    rewrite(tied, without_prefix)
    config = json.loads((tied / 'config.json').read_text()) | {'architectures': ['Qwen2Model']}
    (tied / 'config.json').write_text(json.dumps(config))
    out = weights.save(weights.load(tied), tmp_path / 'out', source=tied)
    assert_same_bits(tensors(out), whole)
    assert json.loads((out / 'config.json').read_text())['architectures'] == ['Qwen2ForCausalLM']

    untied = weights.save(tiny.decoder('llama3'), tmp_path / 'untied')
    rewrite(untied, lambda x: without_prefix(x) or x.pop('lm_head.weight'))
    refuse(untied, 'no lm_head.weight, and config.json has tie_word_embeddings: false')


def test_constants_of_old_checkpoints_are_ignored(saved):
    name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
    rewrite(saved, lambda x: x.update({name: np.ones(2, np.float32)}))
    weights.load(saved)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        (
            b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n',
            'a Git LFS pointer',
        ),
        (b'\xef\xbb\xbf \n<!DOCTYPE html><html>', 'an HTML page'),
        (b'<html lang="en">', 'an HTML page'),
    ],
)
@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_what_was_saved_in_the_place_of_a_file_is_named(saved, name, content, said):
    (saved / name).write_bytes(content)
    refuse(saved, f'{name}: {said} in the place of the file')


@pytest.mark.parametrize('name', ['model.safetensors', 'model.safetensors.index.json'])
def test_pipes_and_devices_are_not_opened(saved, name):
    (saved / 'model.safetensors').unlink()
    os.mkfifo(saved / name)
    refuse(saved, f'{name}: not a regular file')
    (saved / name).unlink()
    (saved / name).symlink_to('/dev/zero')
    refuse(saved, f'{name}: not a regular file')


def test_directory_of_an_adapter_is_no_model(saved):
    (saved / 'adapter_config.json').write_text('{}')
    refuse(saved, 'an adapter of PEFT')


@pytest.mark.parametrize(
    'file', ['../a.safetensors', '/etc/passwd', 'x/../y', '..\\a', '', 3, None]
)
def test_index_must_not_leave_its_directory(saved, file):
    (saved / 'model.safetensors').unlink()
    index = {'weight_map': {NAME: file}}
    (saved / 'model.safetensors.index.json').write_text(json.dumps(index))
    refuse(saved, f'{NAME}: .*expected a .safetensors file of this directory')


@pytest.mark.parametrize(
    ('index', 'message'),
    [
        ({}, 'weight_map: expected an object'),
        ({'weight_map': []}, 'weight_map: expected an object'),
        ({'weight_map': {NAME: 'gone.safetensors'}}, 'gone.safetensors: No such file'),
        ({'weight_map': {'nothing': 'a.safetensors'}}, 'nothing: not in a.safetensors'),
    ],
)
def test_bad_index_is_named(saved, index, message):
    (saved / 'model.safetensors').rename(saved / 'a.safetensors')
    (saved / 'model.safetensors.index.json').write_text(json.dumps(index))
    refuse(saved, message)


def test_no_weights_is_named(saved):
    (saved / 'model.safetensors').unlink()
    refuse(saved, 'neither model.safetensors nor')


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_damaged_file_is_refused_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('damaged') / 'model'
    architecture_ = FAMILIES['llama2'].model_copy(update={'layers': 1})
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(architecture.to_hf(architecture_)))
    decoder = nnx.eval_shape(lambda: Decoder(architecture_, rngs=nnx.Rngs(0)))
    values = weights.parameters(decoder)
    content = {
        name: np.zeros(place.shape(values[place.parameter].shape), np.float32)
        for name, place in weights.places(decoder).items()
    }
    save_file(content, path / 'model.safetensors')
    raw = bytearray((path / 'model.safetensors').read_bytes())
    cut = data.draw(st.integers(0, len(raw)))
    where = data.draw(st.integers(0, min(len(raw), 3000) - 1))
    raw[where] ^= data.draw(st.integers(0, 255))
    (path / 'model.safetensors').write_bytes(raw[:cut] if data.draw(st.booleans()) else raw)
    try:
        weights.load(path)
    except UserError as error:
        message = str(error)
        assert '\n' not in message
