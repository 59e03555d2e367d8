"""Open pages in Streamlit's test runner, and read them."""

from streamlit.testing.v1 import AppTest

from ui.visitor import KEPT

PATIENCE = 600  # seconds; shared machines are slow


def open_page(name: str, *, secret: str | None = None, **query) -> AppTest:
    """Open a page; on a public server as the visitor with `secret`."""
    at = AppTest.from_file("../../app.py", default_timeout=PATIENCE)
    if secret is not None:
        at.session_state[KEPT] = secret
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


def everything(at: AppTest) -> str:
    """Return all that was sent to the browser, as text."""
    return "\n".join(
        str(node.proto) for node in at._tree if hasattr(node, "proto") and node.proto is not None
    )


def plots(at: AppTest) -> int:
    return len(at.get("plotly_chart"))
