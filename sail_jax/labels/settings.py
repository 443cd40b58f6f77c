"""Settings of a labeller that may be people, whatever they compare."""

from typing import Any, Literal

from pydantic import Field

from sail_jax import sweep, unused
from sail_jax.config import Teacher
from sail_jax.errors import UserError


class PeopleTeacher(Teacher):
    """Who labels the policy's pairs. The other settings are those of the scripted teacher; its
    defaults are B-Pref's oracle, and `sail_jax.core.labellers` has the table of its six kinds."""

    source: Literal['teacher', 'people'] = 'teacher'
    """`teacher`: a script, a function or a model. `people`: they answer at the page of `sail-jax
    label`."""
    instruction: str = Field(default='', max_length=500)
    """What people are to go by, as the page says it: `Which one hops further?`. With
    `source: people`."""
    repeat_every: int = Field(default=10, ge=0, le=2**16)
    """After so many answers of a person one question that has been answered is asked again, the
    other way round, to see whether the answers agree; 0 asks none. With `source: people`."""
    wait: bool = True
    """Training waits until all questions are answered. Without it, training goes on with the
    answers that there are (soft actor-critic once the first round is answered), and asks a new
    round once the last one is answered. With `source: people`."""

    @property
    def by_people(self) -> bool:
        """Whether people answer, who are not asked within a dispatch."""
        return self.source == 'people'


OF_PEOPLE = frozenset({'source', 'instruction', 'repeat_every', 'wait'})


def check(run: Any, shared: frozenset[str] = frozenset()) -> None:
    """Refuses settings of a teacher beside people, and of people beside a teacher; and people for
    several runs at once.

    Args:
      run: a `config.Settings` whose `labeller` is a `PeopleTeacher`.
      shared: settings of a teacher that people have too.

    Raises:
      UserError: naming the keys.
    """
    labeller = run.labeller
    fields = set(type(labeller).model_fields)
    of_others = fields - OF_PEOPLE - shared if labeller.by_people else OF_PEOPLE - {'source'}
    unused.refuse('labeller', labeller, f'labeller.source: {labeller.source}', of_others)
    if labeller.by_people and sweep.Members.of(run).sweep:
        raise UserError(
            'labeller.source: people: they are asked for one run, without seeds and sweep'
        )
