"""The lessons of the page Learn: what each says, where it is used, and which paper it is from."""

from dataclasses import dataclass

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Lesson:
    """`text` is a few sentences; `page` (file, words) where the idea is used; `papers` are (title, arXiv
    number)."""

    key: str
    title: str
    text: str
    page: tuple[str, str]
    papers: tuple[tuple[str, str], ...]


LESSONS = (
    Lesson(
        "grid",
        "Grids",
        "Sixteen codes can stand for sixteen values. An even grid spends them everywhere alike; most weights lie near zero, so a table can "
        "put its values there (nf4, at equal shares of a normal distribution) or where these very weights are (kmeans4).",
        ("pages/layers.py", "See the error of every layer"),
        (("NF4, in QLoRA", "2305.14314"), ("Learned tables, SqueezeLLM", "2306.07629")),
    ),
    Lesson(
        "zero",
        "Zero point",
        "A symmetric grid reaches equally far to both sides. Where a group of weights lies to one side, half of it is wasted; a zero point "
        "shifts the grid, for one more small integer a group.",
        ("pages/layers.py", "Compare both on every layer"),
        (("Integer-only inference", "1712.05877"),),
    ),
    Lesson(
        "group",
        "Group size",
        "Weights that share a scale share the step of the largest among them. Smaller groups have smaller steps, and store more scales.",
        ("pages/plan.py", "See what a group size takes in memory"),
        (("GPTQ, which groups", "2210.17323"),),
    ),
    Lesson(
        "clip",
        "Clipping",
        "A grid need not reach the largest weight. Cutting a few off makes every step smaller: rounding errors shrink while the cut ones "
        "grow, and with few bits the best grid is shorter than the weights.",
        ("pages/quantize.py", "Run int4-g64-hqq, which searches the range"),
        (("OCTAV, optimal clipping", "2206.06501"), ("AWQ, which searches, too", "2306.00978")),
    ),
    Lesson(
        "outlier",
        "Outliers",
        "One value that is far larger than the others takes the whole grid, and its neighbours become zeros. Trained models have such "
        "values, most of all in their activations.",
        ("pages/sensitivity.py", "See which layers the model minds"),
        (("LLM.int8()", "2208.07339"), ("QuaRot, which spreads them", "2404.00456")),
    ),
    Lesson(
        "dynamic",
        "8-bit activations",
        "Weights alone in few bits save memory; activations in 8 bits as well let the processor multiply integers. They are not known "
        "before the model runs, so they get a scale at each call: one for each token, or one for all, which one large channel spoils.",
        ("pages/compare.py", "Compare int8 with int8-dynamic"),
        (("ZeroQuant, a scale a token", "2206.01861"), ("SmoothQuant", "2211.10438")),
    ),
    Lesson(
        "bits",
        "Where the bits go",
        "A 4-bit format takes more than 4 bits: every group has a scale, perhaps a zero point, perhaps a table. Quantizing the scales "
        "again (-dq) gives half of that back.",
        ("pages/plan.py", "Count a whole model"),
        (("Double quantization, in QLoRA", "2305.14314"),),
    ),
    Lesson(
        "learned",
        "Learned codes",
        "Rounding to nearest is best for each weight by itself and not for what the layer computes. Training lets gradients pass over the "
        "rounding and moves some codes to their other neighbour. Done for one layer after training it is cheap; done through the whole "
        "model it is quantization-aware training.",
        ("pages/train.py", "Train a whole model through its rounding"),
        (
            ("Straight-through gradients", "1308.3432"),
            ("LSQ, learned scales", "1902.08153"),
            ("AdaRound", "2004.10568"),
        ),
    ),
    Lesson(
        "pruning",
        "Pruning",
        "The smallest weights matter least, so leave them out. Zeros are only cheaper if a weight's place costs less than the weight: with "
        "a bit for each that says whether it is there, above one zero in as many as a weight has bits.",
        ("pages/train.py", "Prune a model"),
        (("Magnitude", "1506.02626"), ("Wanda", "2306.11695"), ("2:4", "2104.08378")),
    ),
    Lesson(
        "distillation",
        "Distillation",
        "A text says which word came next; a teacher says how likely every word was. A higher temperature shows more of what it knows "
        "besides its first choice. Here the student is the model without every second layer, before any training.",
        ("pages/train.py", "Distill a student"),
        (("Distilling the knowledge", "1503.02531"),),
    ),
    Lesson(
        "runs",
        "Your own runs",
        "Size, speed and quality pull in different directions. These are the recipes that were run on this machine; the line joins those "
        "that no other one beats.",
        ("pages/compare.py", "All figures side by side"),
        (("Accuracy is not all you need", "2407.09141"),),
    ),
)
