"""An array's name ends in its axes, `logp_BxLxT`: within a function every letter has one size."""

import contextlib
import re
import sys

AXES = re.compile(r'_((?:[A-Z]|\d+)(?:x(?:[A-Z]|\d+))*)$')


class Sizes:
    """What the letters of one function's call stand for."""

    def __init__(self, function):
        self.function, self.known, self.wrong = function, {}, []

    def array(self, name, value):
        """Compares a shape with the axes in a name, if it has any."""
        axes, shape = AXES.search(name), getattr(value, 'shape', None)
        if axes is None or not isinstance(shape, tuple):
            return
        letters = axes[1].split('x')
        if len(letters) != len(shape):
            self.wrong.append(f'{self.function}: {name} has shape {shape}')
            return
        for letter, size in zip(letters, shape, strict=True):
            if letter.isdecimal():
                self.letter(letter, int(letter), 'its name')
            self.letter(letter, size, name)

    def letter(self, letter, size, name):
        """The first to name a letter says its size."""
        before, first = self.known.setdefault(letter, (size, name))
        if before != size:
            said = f'{letter} is {before} in {first} and {size} in {name}'
            self.wrong.append(f'{self.function}: {said}')

    def tuple(self, name, value):
        """The fields of a NamedTuple, and of those in it."""
        for field in getattr(value, '_fields', ()):
            inner = getattr(value, field)
            self.array(f'{name}.{field}', inner)
            self.tuple(f'{name}.{field}', inner)


def mismatches(frame, result):
    """Of a call that ends: of what it was given and gives, fields of NamedTuples included, and of
    its other names."""
    code = frame.f_code
    sizes = Sizes(code.co_qualname)
    taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    for name, value in frame.f_locals.items():
        sizes.array(name, value)
        if len(name) == 1 and name.isupper() and type(value) is int:
            sizes.letter(name, value, 'a variable')
        if name in taken:
            sizes.tuple(name, value)
    sizes.tuple('result', result)
    return sizes.wrong


@contextlib.contextmanager
def checked(folder):
    """Within it every call of a function of a file in `folder` is looked at as it ends.

    Gives the names of the functions looked at.

    Raises:
      AssertionError: at the end, with all mismatches.
    """
    wrong, seen = {}, set()

    def look(frame, event, result):
        if event == 'return' and frame.f_code.co_filename.startswith(str(folder)):
            seen.add(frame.f_code.co_qualname)
            wrong.update(dict.fromkeys(mismatches(frame, result)))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield seen
    finally:
        sys.setprofile(before)
    assert not wrong, '\n'.join(wrong)
