"""Exported directories: what goes along, what stays, what is refused."""

import json
import os

import jax
import pytest

from sail_jax.errors import UserError
from sail_jax.language.data.tokens import MAX_TOKENIZER
from sail_jax.language.model import lora, weights
from tests.support import tiny


@pytest.fixture
def saved(tmp_path):
    return weights.save(tiny.decoder('llama3'), tmp_path / 'model')


def test_export_refuses_an_existing_path_and_another_architecture(saved, tmp_path):
    decoder = tiny.decoder('llama3')
    with pytest.raises(UserError, match='exists; name a new directory'):
        weights.save(decoder, saved)
    with pytest.raises(ValueError, match='not of the architecture'):
        weights.save(tiny.decoder('qwen3'), tmp_path / 'other', source=saved)


def test_export_copies_tokeniser_and_chat_template_but_no_foreign_weights(saved, tmp_path):
    for name in ('tokenizer.json', 'chat_template.jinja', 'merges.txt', 'pytorch_model.bin'):
        (saved / name).write_text(name)
    out = weights.save(weights.load(saved), tmp_path / 'out', source=saved)
    assert sorted(file.name for file in out.iterdir()) == [
        'chat_template.jinja',
        'config.json',
        'merges.txt',
        'model.safetensors',
        'tokenizer.json',
    ]


def test_export_says_nothing_that_is_true_of_its_source_alone(saved, tmp_path):
    config = json.loads((saved / 'config.json').read_text())
    foreign = {'auto_map': {'AutoModel': 'own.Model'}, 'quantization_config': None}
    foreign |= {'torch_dtype': 'bfloat16', 'dtype': 'bfloat16', 'kept': 1}
    (saved / 'config.json').write_text(json.dumps(config | foreign))
    (saved / 'quantize_config.json').write_text('{}')
    own = {'auto_map': {'AutoTokenizer': ['own.Tokenizer', None]}, 'bos_token': 'é'}
    (saved / 'tokenizer_config.json').write_text(json.dumps(own))
    decoder = weights.load(saved)
    out = weights.save(decoder, tmp_path / 'out', source=saved)
    assert not (out / 'quantize_config.json').exists()
    written = json.loads((out / 'config.json').read_text())
    assert not written.keys() & {'auto_map', 'quantization_config'}
    assert (written['torch_dtype'], written['dtype'], written['kept']) == ('float32', 'float32', 1)
    assert json.loads((out / 'tokenizer_config.json').read_text()) == {'bos_token': 'é'}
    weights.load(out)
    # Float tensors beside it: nobody knows which of the two is true.
    changed = config | {'quantization_config': {'quant_method': 'bitsandbytes'}}
    (saved / 'config.json').write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"quantization_config \('bitsandbytes'\)"):
        weights.save(decoder, tmp_path / 'more', source=saved)


def test_export_copies_neither_devices_nor_absurd_sizes(saved, tmp_path):
    (saved / 'blob').write_text('{}')
    (saved / 'linked.json').symlink_to('blob')  # As in Hugging Face's cache.
    (saved / 'device.txt').symlink_to('/dev/null')
    (saved / 'directory.txt').mkdir()
    os.mkfifo(saved / 'pipe.json')
    decoder = weights.load(saved)
    out = weights.save(decoder, tmp_path / 'out', source=saved)
    names = sorted(file.name for file in out.iterdir())
    assert names == ['config.json', 'linked.json', 'model.safetensors']
    assert not (out / 'linked.json').is_symlink()

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            weights.save(decoder, tmp_path / 'more', source=saved)
        assert '\n' not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['model', 'out']

    (saved / 'large.txt').touch()
    os.truncate(saved / 'large.txt', MAX_TOKENIZER + 1)
    refused(r'large\.txt: over 268435456 bytes')
    os.truncate(saved / 'large.txt', MAX_TOKENIZER)
    for i in range(4):
        (saved / f'same{i}.txt').symlink_to('large.txt')
    refused(r'model: 1342177282 bytes in files beside the weights \(large.txt, .*; at most')


def plain(path):
    weights.save(tiny.decoder(), path)


def adapter(path):
    settings = lora.Lora(rank=2)
    lora.save(lora.add(tiny.decoder(), settings, jax.random.key(0)), settings, path)


@pytest.mark.parametrize('save', [plain, adapter])
def test_export_leaves_what_is_there_alone(tmp_path, save):
    """Whatever its name is."""
    foreign = tmp_path / 'out.partial'
    foreign.mkdir()
    (foreign / 'keep').touch()
    save(tmp_path / 'out')
    assert (foreign / 'keep').exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out.partial']
    with pytest.raises(UserError, match='exists; name a new directory'):
        save(tmp_path / 'out')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'out.partial']
