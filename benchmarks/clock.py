"""The timing of whole models: read a prompt, then generate tokens one by one, greedily.

Only the program's own work is timed; the search for the most likely token is not, in any program.
"""

from collections.abc import Callable, Sequence

from benchmarks.plan import STEPS


def timed(
    read: Callable[[Sequence[int]], tuple[float, int]],
    write: Callable[[int], tuple[float, int]],
    prompt: Sequence[int],
    count: int = STEPS,
) -> dict[str, float]:
    """Return rates in tokens per second: "prefill" of `prompt`, "decode" of `count` tokens after it.

    `read(tokens)` starts anew and processes a prompt, `write(token)` processes one further token; both return
    the seconds taken and the most likely next token.
    """
    seconds, token = read(prompt)
    steps = 0.0
    for _ in range(count):
        taken, token = write(token)
        steps += taken
    return {"prefill": len(prompt) / seconds, "decode": count / steps}
