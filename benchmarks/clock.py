"""How every whole model is timed: a prompt is read, then tokens are written one by one, each the most likely
one.

Only the program's own work is on the clock; finding the most likely token is not, whoever does it.
"""

from collections.abc import Callable, Sequence

from benchmarks.plan import STEPS


def timed(
    read: Callable[[Sequence[int]], int], write: Callable[[int], int], prompt: Sequence[int]
) -> dict[str, float]:
    """Rates in tokens a second: "prefill" of `prompt`, "decode" of STEPS tokens after it.

    `read(tokens)` starts anew and processes a prompt, `write(token)` one token more; both return the seconds
    that it took and the most likely next token.
    """
    seconds, token = read(prompt)
    steps = 0.0
    for _ in range(STEPS):
        taken, token = write(token)
        steps += taken
    return {"prefill": len(prompt) / seconds, "decode": STEPS / steps}
