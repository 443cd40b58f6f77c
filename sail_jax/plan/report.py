"""What a target makes of a run: its programs compiled, counted and held against the chip."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from sail_jax.plan import compiler, count, roofline
from sail_jax.plan.collectives import Fleet
from sail_jax.plan.compiler import Compiled
from sail_jax.plan.count import Counted
from sail_jax.plan.roofline import Times
from sail_jax.plan.targets import Target
from sail_jax.training import devices
from sail_jax.training.program import Program, Programs

PREALLOCATED = 0.75
"""Of a GPU's memory, that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""
HEAVIEST = 10


class Planned(NamedTuple):
    """One program on a target."""

    program: Program
    compiled: Compiled
    counted: Counted | None
    """None where it does not compile."""
    times: Times | None
    bytes_per_device: dict[str, int]
    fits: bool

    @property
    def share_s(self) -> float:
        """Seconds of an update at the roofline."""
        return self.program.per_update * (self.times.roofline_s if self.times else 0.0)


class Report(NamedTuple):
    """A run on a target."""

    target: Target
    programs: tuple[Planned, ...]
    plan: Programs
    fleet: Fleet

    @property
    def fits(self) -> bool:
        """Whether every program compiles, and memory is enough for each."""
        return all(planned.fits for planned in self.programs)

    @property
    def update_s(self) -> float | None:
        """Seconds that an update takes at the least, without evaluations; None where a program of
        it does not compile."""
        if any(planned.times is None for planned in self.training):
            return None
        return sum(planned.share_s for planned in self.training)

    @property
    def training(self) -> list[Planned]:
        """Its programs but those of evaluations."""
        return [x for x in self.programs if not x.program.evaluation]


def make(
    plan: Programs, target: Target, stage: Callable[[str], None] = lambda what: None
) -> Report:
    """Compiles and counts a run's programs.

    Args:
      stage: told what is being compiled.
    """
    devices = plan.mesh.devices.flatten()
    fleet = Fleet(dict(plan.mesh.shape), [device.process_index for device in devices])
    made = []
    for number, program in enumerate(plan.programs, 1):
        stage(f'{target}: compiling {program.name} ({number} of {len(plan.programs)})')
        made.append(_planned(program, compiler.compile(program, target), plan, target, fleet))
    return Report(target, tuple(made), plan, fleet)


def _planned(
    program: Program, compiled: Compiled, plan: Programs, target: Target, fleet: Fleet
) -> Planned:
    counted, times, chip = None, None, target.chip
    if not compiled.error:
        counted = count.count(compiled.text, chip.platform, program.longest)
        times = roofline.times(counted, chip, fleet)
    sizes = bytes_per_device(program, compiled, plan)
    fits = not compiled.error and sizes['total'] <= chip.memory
    return Planned(program, compiled, counted, times, sizes, fits)


def bytes_per_device(program: Program, compiled: Compiled, plan: Programs) -> dict[str, int]:
    """What lies on a device while a program runs: what the run keeps there all the time, whether
    the program reads it or not, and what the program takes besides."""
    resident = {name: devices.size_on_one(tree) for name, tree in plan.resident.items()}
    memory = dict.fromkeys(compiler.SIZES, 0) | compiled.memory
    sizes = resident | {
        'batch': devices.size_on_one(program.batch),
        'temporaries': memory['temporaries'],
        'outputs': max(0, memory['outputs'] - memory['aliased']),
        'code': memory['code'],
    }
    # The compiler knows of its arguments' padding.
    least = sum(memory.values()) - 2 * memory['aliased']
    return sizes | {'total': max(sum(sizes.values()), least)}


def bounds(report: Report) -> dict[str, Any]:
    """What an update takes at the least, and what can be got done in a second at the most, on all
    devices; none where a program does not compile."""
    update_s = report.update_s
    if update_s is None:
        return {}
    chips = report.target.count
    model = sum(x.program.per_update * x.program.model_flops for x in report.training)
    numbers: dict[str, Any] = {'update_s': update_s}
    for unit, amount in report.plan.per_update.items():
        numbers[f'{unit}_per_s'] = amount / update_s
    if model:
        numbers['mfu'] = model / (update_s * chips * report.target.chip.flops)
    most = max(report.training, key=lambda x: x.share_s)
    assert most.times is not None  # Or an update had no time.
    numbers['bound_by'] = f'{most.program.name}: {most.times.bound_by}'
    return numbers


def change(report: Report) -> str | None:
    """What to do where the run does not fit; or fits, but for what JAX takes of a GPU; None: it
    does."""
    memory = report.target.chip.memory
    broken = [x for x in report.programs if x.compiled.error]
    largest = max(report.programs, key=lambda x: x.bytes_per_device['total'])
    sizes = largest.bytes_per_device
    kept = sum(sizes[name] for name in report.plan.resident)
    full = [x for x in broken if x.compiled.error.startswith(compiler.TAKES)]
    if broken and not full:
        return None
    if full or sizes['total'] > memory:
        advice = report.plan.smaller
        if kept > memory / 2 and report.plan.split:
            advice = f'{report.plan.split}; more chips'
        return advice
    if report.target.chip.platform == 'cuda' and sizes['total'] > PREALLOCATED * memory:
        return 'set XLA_PYTHON_CLIENT_MEM_FRACTION=0.95: by default JAX takes 75 % of a GPU'
    return None


def as_json(report: Report, config: Mapping[str, Any]) -> dict[str, Any]:
    """The report as `--json` writes it."""
    return {
        'target': str(report.target),
        'chip': report.target.chip._asdict(),
        'mesh': dict(report.fleet.axes),
        'config': dict(config),
        'versions': compiler.versions(),
        'fits': report.fits,
        'change': change(report),
        'programs': {x.program.name: _program(x, report) for x in report.programs},
        'bounds': bounds(report),
    }


def _program(planned: Planned, report: Report) -> dict[str, Any]:
    chip, fleet, program = report.target.chip, report.fleet, planned.program
    said: dict[str, Any] = {
        'fits': planned.fits,
        'bytes_per_device': planned.bytes_per_device | {'memory': chip.memory},
        'per_update': program.per_update,
        'compile_s': round(planned.compiled.seconds, 1),
    }
    if planned.counted is None or planned.times is None:
        return said | {'error': planned.compiled.error}
    counted, times = planned.counted, planned.times
    loops = {(x.count, x.exact, roofline.source(x.lines)) for x in counted.loops}
    said |= {
        'flops': counted.flops,
        'flops_by_precision': counted.flops_by_precision,
        'model_flops': program.model_flops,
        'traffic_bytes': counted.traffic_bytes,
        'collectives': [x._asdict() for x in roofline.exchanges(counted, fleet)],
        'kernels': counted.kernels,
        'roofline_s': times.roofline_s,
        **times._asdict(),
        'bound_by': times.bound_by,
        'heaviest': [
            x._asdict() | {'share': x.seconds / (times.roofline_s or 1)}
            for x in roofline.heaviest(counted, chip, fleet, HEAVIEST)
        ],
        'loops': [
            {'times': times, 'exact': exact, 'source': where}
            for times, exact, where in sorted(loops)
        ],
    }
    if program.steps:
        said |= {'steps': program.steps, 'kernels_per_step': counted.kernels / program.steps}
    return said
