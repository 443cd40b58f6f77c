"""Language as a workload of the registry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_jax.errors import UserError
from sail_jax.kind import Doing, Figure, Kind, Line, Saved, late
from sail_jax.language.config import LanguageRun, check
from sail_jax.language.supervised.config import MODEL

if TYPE_CHECKING:
    from sail_jax.language.export import Respond

TABLE = (
    Line(
        'reward',
        'reward',
        'reward_se',
        'responses has a reward that is a finite number',
        good='high',
    ),
    Line('gain in reward, prompt by prompt', 'reward_gain', 'reward_gain_se', good='above 0'),
    Line('spread of the reward models', 'reward_spread', good='small'),
    Line('win rate against the start policy', 'win_rate', good='above 0.5'),
    Line("win rate against the data's chosen", 'chosen_win_rate', good='high'),
    Line("ties with the data's chosen", 'chosen_ties'),
    Line('KL(policy || start) per response', 'response_kl_policy_to_start', good='small'),
    Line('KL(start || policy) per response', 'response_kl_start_to_policy', good='small'),
    Line('accuracy on held-out pairs', 'pair_accuracy', good='above 0.5'),
    Line('margin on held-out pairs', 'pair_margin', 'pair_margin_se', good='above 0'),
    Line('response length, tokens', 'response_length'),
    Line('responses that ended', 'ended', good='near 1'),
    Line('answers of the judge without a verdict', 'no_verdict', good='0'),
    Line('rewards and judgements that are no finite number', 'not_finite', good='0'),
    Line('loss on held-out responses, nats per token', 'loss', good='low'),
    Line('perplexity on held-out responses', 'perplexity', good='low'),
)


def start_model(run: LanguageRun) -> str:
    """The model that training starts from; of a supervised run's, with the run's directory."""
    path = run.model.path
    return f'{path.parent.name}/{MODEL}' if path.name == MODEL else path.name


def penalised(run: LanguageRun) -> dict[str, str]:
    """The paper's direction, which is penalised by default."""
    if run.divergence.coefficient == 0 or run.divergence.direction == 'policy_to_ref':
        return {}
    return {'eval/response_kl_start_to_policy': 'KL(start || policy), nats per response'}


FIGURE = Figure(
    x={'prompts': 'prompts', 'labels': 'labels', 'wall_s': 'wall time (s)'},
    y={
        'eval/reward': 'reward',
        'eval/pair_accuracy': 'accuracy on held-out pairs',
        'eval/response_kl_policy_to_start': 'KL(policy || start), nats per response',
    },
    subject=start_model,
    penalised=penalised,
)


def require(run: LanguageRun, run_dir: Path, handed: Mapping[str, Any], doing: Doing) -> None:
    """Refuses to go on with a run whose labels come from a function that is missing now."""
    if doing == 'resume' and run.needs_function and not handed.keys() & {'reward', 'judge'}:
        raise UserError(
            f'{run_dir}: labelled by a function from Python; resume it from Python, with the '
            f"reward: sail_jax.train('{run_dir}/config.yaml', '{run_dir}', reward=f, resume=True)"
        )


def remark(run: LanguageRun, run_dir: Path) -> str | None:
    """That the rows of a reward are missing which only Python has."""
    if not run.needs_function:
        return None
    return (
        f'{run_dir}: labelled by a function from Python; evaluate it from Python '
        f"for the rows of its reward: sail_jax.evaluate('{run_dir}', reward=f)"
    )


# parameters: those of the command, all but the first two by name
def export(
    saved: Saved,
    out: Path,
    *,
    adapter: bool = False,
    dtype: str | None = None,
    private: bool = False,
    **handed: Any,
) -> Path | str:
    """Writes a Hugging Face directory, or one on the hub with a model card; neither data nor
    labeller are looked at. Arguments and errors as of `sail_jax.language.export.export`."""
    from sail_jax import files, hub
    from sail_jax.language import export, model_card

    opened = export.open_run(saved.run_dir, saved.run, saved.best)
    if not hub.is_address(out):
        if private:
            raise UserError(f'--private: of a model on the hub; {out} is a directory')
        with files.writing(out):
            return export.export(opened, out, adapter, dtype)
    with hub.new_version(out, saved.run_dir, private) as directory, files.writing(directory):
        export.export(opened, directory, adapter, dtype)
        card = model_card.text(opened, saved.run_dir, hub.name_of(out), adapter)
        files.write(directory / 'README.md', card.encode())
    return hub.url(out)


def load_policy(saved: Saved, *, deterministic: bool = True, **handed: Any) -> Respond:
    """A function from prompts to responses; see `sail_jax.language.export.responder`."""
    from sail_jax.language import export

    return export.responder(saved.run_dir, saved.best, deterministic)


LANGUAGE = Kind(
    name='language',
    trains='a language model, from compared responses',
    settings=LanguageRun,
    check=check,
    task=late('sail_jax.language.task:make'),
    programs=late('sail_jax.language.programs:programs'),
    side_by_side=False,
    processes=True,
    from_python=('reward', 'judge'),
    require=require,
    remark=remark,
    table=TABLE,
    figure=FIGURE,
    export=export,
    generate=late('sail_jax.language.export:respond'),
    load_policy=load_policy,
    export_labels=late('sail_jax.language.answers:export_answers'),
)
