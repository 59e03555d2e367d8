"""Open pages in Streamlit's test runner, and read them."""

from streamlit.testing.v1 import AppTest

PATIENCE = 600  # seconds; shared machines are slow


def open_page(name: str, **query) -> AppTest:
    at = AppTest.from_file("../../app.py", default_timeout=PATIENCE)
    for key, value in query.items():
        at.query_params[key] = value
    if name != "home":
        at.switch_page(f"pages/{name}.py")
    return calm(at.run())


def calm(at: AppTest) -> AppTest:
    assert not at.exception, at.exception[0].stack_trace
    return at


def words(at: AppTest) -> str:
    kinds = (at.markdown, at.caption, at.error, at.warning, at.info, at.success, at.title, at.subheader)
    return "\n".join(element.value for kind in kinds for element in kind)


def plots(at: AppTest) -> int:
    return len(at.get("plotly_chart"))
