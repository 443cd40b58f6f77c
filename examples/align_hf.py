"""Aligns a Hugging Face checkpoint by a reward of one's own, and exports it again.

    python examples/align_hf.py runs/brief                        # a tiny model, made here
    python examples/align_hf.py runs/brief path/to/Qwen2.5-0.5B   # yours

The labeller prefers what `brief` scores higher. The exported directory is what `transformers` and
vLLM read.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import sail_jax
from sail_jax.language.config import LanguageRun
from sail_jax.language.model import weights
from sail_jax.language.model.architecture import Architecture
from sail_jax.language.model.transformer import Decoder

PROMPTS = ('The weather is', 'Once upon a time', 'My favourite dish', 'A good book')
END = '<|end|>'


def brief(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """Scores each response: the shorter, the better."""
    return [-float(len(response)) for response in responses]


def tiny_checkpoint(path: Path) -> Path:
    """A new model of 30 thousand parameters that reads bytes, as a Hugging Face directory."""
    letters = [END, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    architecture = Architecture(
        family='llama',
        vocab_size=len(letters),
        hidden_size=32,
        intermediate_size=64,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        max_positions=256,
    )
    weights.save(Decoder(architecture, rngs=nnx.Rngs(0)), path)
    tokenizer = Tokenizer(models.BPE({letter: id for id, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path / 'tokenizer.json'))
    (path / 'tokenizer_config.json').write_text(json.dumps({'eos_token': END}))
    return path


def main(run_dir: str, model: str | None = None) -> sail_jax.Result:
    """Trains, shows what the model says, and exports it to `RUN_DIR/exported`."""
    beside = Path(run_dir).with_name(f'{Path(run_dir).name}-data')
    beside.mkdir(parents=True, exist_ok=True)
    source = tiny_checkpoint(beside / 'model') if model is None else Path(model)
    rows = [json.dumps({'prompt': f'{prompt} {i}'}) for i in range(8) for prompt in PROMPTS]
    (beside / 'prompts.jsonl').write_text('\n'.join(rows))
    run = LanguageRun.model_validate(
        {
            'workload': 'language',
            'model': {'path': str(source)},
            'data': {'path': str(beside / 'prompts.jsonl'), 'max_prompt_tokens': 32},
            'total_prompts': 320,
            'prompts_per_update': 16,
            'group_size': 4,
            'sampling': {'max_tokens': 16},
            'optimizer': {'learning_rate': 3e-3 if model is None else 1e-6},
            'evaluation': {'every_updates': 10, 'prompts': 8},
        }
    )
    result = sail_jax.train(run, run_dir, reward=brief)
    print(result)
    print(sail_jax.generate(run_dir, PROMPTS[:2], max_tokens=16))
    print(sail_jax.export(run_dir, Path(run_dir) / 'exported'))
    return result


if __name__ == '__main__':
    main(*sys.argv[1:])
