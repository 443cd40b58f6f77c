"""What the host needs of a workload, and the signatures of its parts."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax

from sail_jax.core.types import Hyper, Metrics, Policy, State, Workload
from sail_jax.core.update import OF_PAIRS


class Start(Protocol):
    """Makes or loads the policy that training starts from."""

    def __call__(self, seed: int, /) -> Policy:
        """The start policy of a seed, laid out as it is wherever it comes from.

        Raises:
          UserError: what it is read from cannot be used.
        """
        ...


class Evaluate(Protocol):
    """Measures a policy; every call of one seed uses the same start states or prompts and keys."""

    def __call__(
        self, policy: Policy, start: Policy, shared: Any, seed: jax.Array, hyper: Hyper, /
    ) -> Mapping[str, jax.typing.ArrayLike]:
        """Numbers by name, scalars.

        Of a sweep the function is vmapped: every leaf of the arguments leads with the members.

        Args:
          policy: what is measured.
          start: the policy that training began from; for each seed always the same.
          shared: `State.shared`, which both stand on.
          seed: uint32 scalar.
          hyper: `State.hyper`.
        """
        ...


class Dispatch(Protocol):
    """A few updates."""

    def __call__(self, state: State, /) -> tuple[State, Metrics]:
        """The next state, and numbers with a last axis of updates, `update.counters` among them.

        The state's buffers are donated.

        Raises:
          UserError, TrainingFailed: where the host has a part; the state is then as it was.
        """
        ...


class MakeProgram(Protocol):
    """Makes the compiled program of a dispatch, `update.make_dispatch` of another update."""

    def __call__(self, shardings: State, sweep: bool, /) -> Any:
        """A jitted function as of `Dispatch`.

        Args:
          shardings: of the state, before and after.
          sweep: the state's leaves lead with the members of a sweep.
        """
        ...


class InitState(Protocol):
    """Makes the first state; pure, so that it can be traced for its shapes."""

    def __call__(self, start: Policy, seed: jax.Array, /) -> State:
        """The state before the first update.

        Args:
          start: what training starts from.
          seed: uint32 scalar.
        """
        ...


class Shardings(Protocol):
    """How a state lies on the devices."""

    def __call__(self, state: State, /) -> State:
        """From shapes and types to shardings, leaf by leaf."""
        ...


class HostExchange(Protocol):
    """What the host does between compiled dispatches, for people who are asked for example; the
    state is never one that a dispatch has taken."""

    waiting: str
    """What is waited for, in words."""

    def publish(self, state: State, /) -> None:
        """Gives out what a state asks, before the state is saved; the same again does nothing."""
        ...

    def ready(self, state: State, /) -> bool:
        """Whether there is what the next dispatch waits for; asked again and again."""
        ...

    def take(self, state: State, /) -> State:
        """The state with what has come in, which is a function of the state and of what came in."""
        ...


class Task(NamedTuple):
    """What the host needs of a workload."""

    workload: Workload | None
    """None where `init`, and `dispatch` or `program`, do all of its work."""
    shardings: Shardings
    start: Start
    abstract_policy: Policy
    """Shapes and types of a policy."""
    evaluate: Evaluate
    updates: int
    updates_per_dispatch: int
    evaluate_every: int
    """Updates between evaluations."""
    unit: str
    """What the length of a run is counted in: `env_steps`, `prompts`."""
    units_per_update: int
    max_labels: int | None
    watch: dict[str, str]
    """Metrics for the progress bar, with short titles."""
    best: tuple[str, ...]
    """What the best checkpoint is chosen by, as `checkpoints.metric`: the first that there is."""
    patience: int | None = None
    """After how many evaluations in a row that were no better, by the same number, a run ends."""
    batch_bytes: Callable[[], int] = int
    """What an update or an evaluation holds at the least, over all devices."""
    smaller: str = 'lower the size of a batch'
    """What to do where the devices' memory is not enough."""
    shared: Callable[[], Any] = tuple
    """Makes or loads `State.shared`, which no checkpoint holds."""
    dispatch: Dispatch | None = None
    """Stands in for the compiled program where the host has a part in every update."""
    program: MakeProgram | None = None
    """Stands in for `update.make_dispatch` where an update is no step of the preference objective.
    """
    exchange: Callable[[Path], HostExchange] | None = None
    """Opens what the host does between dispatches, in the run directory; for a run alone."""
    absent: tuple[str, ...] = OF_PAIRS
    """Numbers of updates that are left out where they are NaN, since there was nothing for them."""
    init: InitState | None = None
    """Stands in for `update.init`; `State.hyper` is set afterwards."""
    hyper: Callable[[Any], Any] = Hyper.of
    """`State.hyper` of a configuration."""
    reference_stays: bool = False
    """The reference is the start policy to the end, so that the devices need not keep both."""
    digests: Callable[[], dict[str, str]] = dict
    """Of the files that a run reads, by what errors call them; every checkpoint has them."""
    broken: str = 'numbers that are not finite'
    """What `eval/not_finite` counts, in words."""
    stepless: str | None = None
    """Why all updates of a run may make no gradient step, in words; None where its settings do not
    say so."""
    unasked: str | None = None
    """Why a run ends before its first question, in words; None where it does not."""

    def at(self, step: int) -> str:
        """How far a run is after so many updates, in words."""
        return f'{step * self.units_per_update:,} {self.unit.replace("_", " ")}'
