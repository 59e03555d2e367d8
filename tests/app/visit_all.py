"""`python visit_all.py`: visit and use every page in Streamlit's test runner, with a real worker process, and
print which heavy libraries this process has imported.

QCORE_HOME holds a tiny default model and one finished run. Jobs are submitted, and end at once.
"""

import sys
from collections.abc import Callable

from opened import PATIENCE, calm, open_page, plots, words
from streamlit.testing.v1 import AppTest

from qcore.jobs import jobs
from ui import engine
from ui.learn_lessons import LESSONS

HEAVY = ("torch", "transformers", "onnxruntime")


class Refuse:
    """Refuses to import what is heavy, so that the traceback names who asked for it."""

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name in HEAVY:
            raise AssertionError(f"{name} is imported into the process of the pages")


def home(at: AppTest) -> None:
    assert plots(at) == 1


def plan(at: AppTest) -> None:
    assert "million weights" in words(at) and len(at.dataframe) == 2
    calm(at.number_input(key="plan.users").set_value(3).run())
    calm(at.button(key="plan.probe").click().run())


def quantize(at: AppTest) -> None:
    assert plots(at) == 1
    calm(at.button(key="quantize.start").click().run())
    assert at.query_params["run"]


def compare(at: AppTest) -> None:
    assert plots(at) > 3


def playground(at: AppTest) -> None:
    calm(at.slider(key="playground.new_tokens").set_value(8).run())
    calm(at.multiselect(key="playground.recipes").set_value(["fp32", "int8"]).run())
    calm(at.button(key="playground.write").click().run())
    session = at.session_state["playground.session"]
    session.join(PATIENCE)
    assert [pane.state for pane in session.panes.values()] == ["done", "done"], session.error


def layers(at: AppTest) -> None:
    calm(at.button(key="layers.measure").click().run())
    assert plots(at) == 2


def audit(at: AppTest) -> None:
    calm(at.button(key="audit.start").click().run())


def sensitivity(at: AppTest) -> None:
    calm(at.button(key="sensitivity.compute").click().run())


def train(at: AppTest) -> None:
    for kind in ("qat", "prune", "distill"):
        calm(at.segmented_control(key="making.kind").set_value(kind).run())
        calm(at.button(key="making.start").click().run())
    kinds = [status.kind for status in jobs.list_runs()]
    assert {"qat", "prune", "distill"} <= set(kinds), (kinds, words(at))
    jobs.repeat(jobs.list_runs("qat")[0].run_id)


def export(at: AppTest) -> None:
    calm(at.button(key="export.start").click().run())
    assert jobs.list_runs("export"), words(at)


def learn(at: AppTest) -> None:
    for each in LESSONS:
        calm(at.pills(key="learn.lesson").set_value(each.title).run())
        assert plots(at) or each.key == "distillation", words(at)
        if each.key == "distillation":
            calm(at.button(key="learn.ask").click().run())
            assert plots(at) == 1, words(at)


USES: tuple[Callable[[AppTest], None], ...] = (
    home,
    plan,
    quantize,
    compare,
    playground,
    layers,
    audit,
    sensitivity,
    train,
    export,
    learn,
)

if __name__ == "__main__":
    sys.meta_path.insert(0, Refuse())
    jobs.worker_command = lambda folder: [sys.executable, "-c", ""]
    for use in USES:
        at = open_page(use.__name__)
        assert not at.error, at.error
        use(at)
        assert not [error for error in at.error if "killed from outside" not in error.value], at.error
    worker = engine.process()
    assert worker.pid is not None
    worker.close()
    print("imported:", *(name for name in HEAVY if name in sys.modules))
