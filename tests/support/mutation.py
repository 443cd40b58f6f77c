"""Changed values and keys of nested data."""

import copy

ODD = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**400, 1e308, -0.0, float('nan'), float('inf'), '',
    'none', 'auto', '../../etc/passwd', '!!python/object:os.system', 'a' * 10_000, [], [[]], {},
    {'a': 1}, ['x', 1], '2020-01-01', '0x10', '1_000', b'bytes'.hex(), '\u0000', '\ud7ff',
]  # fmt: skip


def leaves(tree, path=()):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))


def mutate(tree, rng):
    """One to three changes of values and keys."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        found = list(leaves(tree))
        if not found:
            return tree
        *parents, key = rng.choice(found)
        node = tree
        for parent in parents:
            node = node[parent]
        match rng.randrange(4):
            case 0:
                del node[key]
            case 1 if isinstance(node, dict):
                node[rng.choice(['x', 'seed', 'beta', str(key)[::-1], 1, None])] = copy.deepcopy(
                    rng.choice(ODD)
                )
            case _:
                node[key] = copy.deepcopy(rng.choice(ODD))
    return tree
