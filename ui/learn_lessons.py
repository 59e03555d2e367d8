"""The lessons of the page Learn: text, the page that uses the idea, and the papers."""

from dataclasses import dataclass

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True)
class Lesson:
    """One lesson: `text` in a few sentences, `page` (file, label) that uses the idea, `papers` as (title,
    arXiv number)."""

    key: str
    title: str
    text: str
    page: tuple[str, str]
    papers: tuple[tuple[str, str], ...]


LESSONS = (
    Lesson(
        "grid",
        "Grids",
        "Sixteen codes can represent sixteen values. A uniform grid spaces them evenly. Most weights lie "
        "near zero, so a table can place its values there (nf4, at equal shares of a normal distribution) "
        "or where this layer's weights are (kmeans4).",
        ("pages/layers.py", "See the error of every layer"),
        (("NF4, in QLoRA", "2305.14314"), ("Learned tables, SqueezeLLM", "2306.07629")),
    ),
    Lesson(
        "zero",
        "Zero point",
        "A symmetric grid extends equally far to both sides. If most weights of a group lie on one side, "
        "half of the grid is wasted. A zero point shifts the grid and costs one more small integer per "
        "group.",
        ("pages/layers.py", "Compare both on every layer"),
        (("Integer-only inference", "1712.05877"),),
    ),
    Lesson(
        "group",
        "Group size",
        "Weights that share a scale share the step of the largest among them. Smaller groups have smaller "
        "steps and store more scales.",
        ("pages/plan.py", "See what a group size costs in memory"),
        (("GPTQ, with groups", "2210.17323"),),
    ),
    Lesson(
        "clip",
        "Clipping",
        "A grid need not reach the largest weight. Clipping a few weights makes every step smaller: rounding "
        "errors shrink while clipping errors grow. With few bits the best grid is narrower than the weights.",
        ("pages/quantize.py", "Run int4-g64-hqq, which searches the range"),
        (("OCTAV, optimal clipping", "2206.06501"), ("AWQ, which also searches", "2306.00978")),
    ),
    Lesson(
        "outlier",
        "Outliers",
        "One value far larger than the others claims the whole grid, and its neighbors round to zero. "
        "Trained models have such values, most of all in their activations.",
        ("pages/sensitivity.py", "See which layers are sensitive"),
        (("LLM.int8()", "2208.07339"), ("QuaRot, which spreads them", "2404.00456")),
    ),
    Lesson(
        "dynamic",
        "8-bit activations",
        "Quantizing weights saves memory. Quantizing activations to 8 bits as well lets the processor "
        "multiply integers. Activations are known only while the model runs, so their scales are computed "
        "at each call: one per token, or one for all tokens, which a single large channel spoils.",
        ("pages/compare.py", "Compare int8 with int8-dynamic"),
        (("ZeroQuant, one scale per token", "2206.01861"), ("SmoothQuant", "2211.10438")),
    ),
    Lesson(
        "bits",
        "Where the bits go",
        "A 4-bit format stores more than 4 bits per weight: every group has a scale, perhaps a zero point, "
        "perhaps a table. Quantizing the scales again (-dq) halves that overhead.",
        ("pages/plan.py", "Count a whole model"),
        (("Double quantization, in QLoRA", "2305.14314"),),
    ),
    Lesson(
        "learned",
        "Learned codes",
        "Rounding to nearest is best for each weight alone, but not for the layer's output. Training passes "
        "gradients through the rounding and moves some codes to the neighboring value. For one layer at a "
        "time this is cheap. For the whole model it is quantization-aware training.",
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
        "The smallest weights matter least, so set them to zero. Zeros save bytes only if marking them costs "
        "less than storing them. With one marker bit per weight, b-bit weights need more than one zero in b.",
        ("pages/train.py", "Prune a model"),
        (("Magnitude", "1506.02626"), ("Wanda", "2306.11695"), ("2:4", "2104.08378")),
    ),
    Lesson(
        "distillation",
        "Distillation",
        "A text shows which token came next. A teacher shows how likely every token was. A higher "
        "temperature reveals more of the teacher's second choices. The student here is the model without "
        "every second layer, before any training.",
        ("pages/train.py", "Distill a student"),
        (("Distilling the knowledge", "1503.02531"),),
    ),
    Lesson(
        "runs",
        "Your own runs",
        "Size, speed and quality pull in different directions. The plot shows the recipes that ran on this "
        "machine. The line joins those that no other recipe beats on both axes.",
        ("pages/compare.py", "All figures side by side"),
        (("Accuracy is not all you need", "2407.09141"),),
    ),
)
