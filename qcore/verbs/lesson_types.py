"""What the lessons return: plain data, so that a page can hold it without torch."""

from collections.abc import Mapping
from dataclasses import dataclass

FACTORS = (1, 3, 10, 30, 100)  # of a large input channel; beyond, the output is that channel's alone


@dataclass(frozen=True)
class Group:
    """One group of weights that share a scale: `before` and `after` rounding, in order, and the values of the
    `grid`, ascending."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    grid: tuple[float, ...]


@dataclass(frozen=True)
class Rounded:
    """A weight in the format `label`. `parts`: bits per weight of each stored part, which add up to
    `bits_per_weight`. `levels_used`: the share of the grid's values used by the shown `group`."""

    label: str
    relative_error: float
    snr_db: float
    bits_per_weight: float
    parts: dict[str, float]
    group: Group

    @property
    def levels_used(self) -> float:
        return len(set(self.group.after)) / len(self.group.grid)


@dataclass(frozen=True)
class Clipped:
    """A grid that covers `share` of the largest magnitude of its group. `relative_error` covers all weights;
    its square is the sum of the squares of `cut` (weights beyond the grid) and `rounding` (the other
    weights)."""

    share: float
    relative_error: float
    cut: float
    rounding: float
    weights_cut: float
    group: Group


@dataclass(frozen=True)
class Outlier:
    """A group with one weight set to `factor` times the largest. `others_error`: relative error of the other
    weights. `lost`: the share of the other weights that became 0."""

    factor: float
    others_error: float
    lost: float
    group: Group


@dataclass(frozen=True)
class Activations:
    """Relative errors of a layer's output with one input channel `factor` times as large as the others: with
    the quantized weight and exact inputs, and with 8-bit inputs, one scale per `token` or one for
    `all_tokens` together."""

    factor: float
    weights_only: float
    token: float
    all_tokens: float


@dataclass(frozen=True)
class Learned:
    """Relative errors of a layer's output: rounded to nearest, and after each step (best so far last).
    `moved`: the share of codes that differ at the end."""

    rounded: float
    steps: tuple[float, ...]
    moved: float

    @property
    def final(self) -> float:
        return self.steps[-1]


@dataclass(frozen=True)
class Pruned:
    """A weight with the share `amount` set to 0: its relative error, bits per weight in dense and sparse
    storage, the share of zeros above which sparse storage is smaller, and magnitudes of the kept and removed
    weights, for a chart."""

    amount: float
    relative_error: float
    dense_bits: float
    sparse_bits: float
    break_even: float
    stayed: tuple[float, ...]
    went: tuple[float, ...]


@dataclass(frozen=True)
class Taught:
    """Next-token probabilities of teacher and student for the teacher's most probable `tokens` (token ids) at
    a temperature, the share of all other tokens, and the distillation loss T² · KL, in nats."""

    tokens: tuple[int, ...]
    teacher: tuple[float, ...]
    student: tuple[float, ...]
    others: float
    entropy: float
    loss: float


@dataclass(frozen=True)
class Predicted:
    """The next token predicted by all `layers[0]` layers of a model and by `layers[1]` of them. `words`: the
    texts of the most probable tokens. `taught`: the two distributions by temperature."""

    layers: tuple[int, int]
    words: Mapping[int, str]
    taught: Mapping[float, Taught]


@dataclass(frozen=True)
class WeightOutline:
    """The tensor `name`, of which a lesson reads `shape` (outputs, inputs): the first of its `rows` rows
    where it is large."""

    name: str
    shape: tuple[int, int]
    rows: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows are included."""
        return self.shape[0] == self.rows
