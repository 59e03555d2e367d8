"""A valid JSON record with one thing changed, for tests of what is read from strangers."""

import copy

from hypothesis import strategies as st


def places(value, path=()):
    """The paths of all values inside a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inside:
        yield from places(child, (*path, key))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70_000)
    | st.floats(0.5, 600)
    | st.sampled_from(
        ["", "int4", "uniform", "codebook", "nf4", "float32", "../x.safetensors", "fp32", "int8"]
    ),
    lambda children: (
        st.lists(children, max_size=2) | st.dictionaries(st.sampled_from("ab"), children, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def mutated(draw, record):
    """`record` with something deleted, exchanged, repeated, added or made larger."""
    changed = copy.deepcopy(record)
    *path, last = draw(st.sampled_from([path for path in places(record) if path]))
    parent = changed
    for key in path:
        parent = parent[key]
    old = parent[last]
    ways = ["delete", "replace"] + ["scale"] * 2 * (type(old) is int) + ["shuffle"] * isinstance(old, list)
    way = draw(st.sampled_from(ways))
    if way == "delete":
        del parent[last]
    elif way == "scale":
        parent[last] = draw(st.sampled_from([old * 8, old + 1, old - 1, -old, old // 2, float(old)]))
    elif way == "shuffle":
        parent[last] = draw(st.permutations(old)) + draw(st.sampled_from([[], old[:1]]))
    else:
        parent[last] = draw(JSON)
    return changed
