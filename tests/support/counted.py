"""What is copied out of the files of a checkpoint."""

from sail_jax.language.model import tensors, weights


class Counted:
    """A tensor of a file; notes the bytes that are copied out of it."""

    def __init__(self, view, read):
        self.view, self.read = view, read
        self.get_shape, self.get_dtype = view.get_shape, view.get_dtype

    def __getitem__(self, index):
        part = self.view[index]
        self.read.append(part.nbytes)
        return part


def copied():
    """A list that takes the bytes of each copy that `weights.load` makes from now on."""
    read = []

    def open_counted(file, stack):
        sources = tensors.open_safetensors(file, stack)
        return {name: s._replace(view=Counted(s.view, read)) for name, s in sources.items()}

    weights.open_safetensors = open_counted
    return read
