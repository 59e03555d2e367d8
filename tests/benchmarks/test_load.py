"""The load benchmark: a tab against a server of a few messages, and the summary of a record."""

import asyncio

import httpx2
import pytest
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.server import serve

from benchmarks import deployment, load
from benchmarks.load_tab import Record, Rerun, Tab


def message(run: str = "", **fields) -> ForwardMsg:
    made = ForwardMsg(**fields)
    made.metadata.run.fragment_ids.extend([run] if run else [])
    return made


def element(**kinds) -> ForwardMsg:
    made = ForwardMsg()
    for kind, values in kinds.items():
        shown = getattr(made.delta.new_element, kind)
        for name, value in values.items():
            setattr(shown, name, value)
    return made


def script(*parts: ForwardMsg, page: str = "one") -> list[ForwardMsg]:
    """One run of a page, as the server sends it."""
    start = message()
    start.new_session.page_script_hash = page
    menu = message()
    for title in ("one", "two"):
        menu.navigation.app_pages.add(page_script_hash=title, page_name=title.title(), url_pathname=title)
    return [start, menu, *parts, message(script_finished=ForwardMsg.FINISHED_SUCCESSFULLY)]


def served(answer, use):
    """Return what `use(address, requests)` returns while a server replies with `answer(state)`."""
    requests = []

    async def talk(socket):
        async for data in socket:
            state = BackMsg.FromString(data).rerun_script
            requests.append(state)
            for each in answer(state):
                await socket.send(each.SerializeToString())

    def index(connection, request):
        return None if request.path.startswith("/_stcore") else connection.respond(200, "a page")

    async def both():
        async with serve(talk, "127.0.0.1", 0, subprotocols=["streamlit"], process_request=index) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            return await use(f"127.0.0.1:{port}", requests)

    return asyncio.run(both())


def play(answer, act) -> tuple[Record, list]:
    """Let `act(tab)` use a server that replies with `answer(state)`; return the record and the requests."""
    record = Record()

    async def use(address, requests):
        browser = httpx2.AsyncClient(verify=False)
        async with browser, Tab(address, record, browser) as tab:
            await tab.enter()
            await act(tab)
        return record, requests

    return served(answer, use)


def test_a_tab_turns_pages_and_sends_what_was_changed():
    button, toggle = {"id": "b", "label": "Start"}, {"id": "t", "label": "Chat"}

    async def act(tab):
        await tab.change(tab.widgets["t"], 0.2)
        await tab.change(tab.widgets["b"], 0)
        await tab.turn_to("Two")
        assert tab.page == "Two" and not tab.widgets

    def answer(state):
        if state.page_script_hash == "two":
            return script(page="two")
        return script(element(button=button), element(checkbox=toggle))

    record, requests = play(answer, act)
    values = [
        {each.id: each.WhichOneof("value") for each in state.widget_states.widgets} for state in requests
    ]
    assert values == [{}, {"t": "bool_value"}, {"t": "bool_value", "b": "trigger_value"}, {}]
    assert [each.kind for each in record.reruns] == ["page", "widget", "widget", "page"]
    assert not record.errors and record.messages == 18


def test_a_message_that_the_tab_keeps_is_not_sent_again():
    text = element(markdown={"body": "long"})
    text.hash, text.metadata.cacheable = "digest", True

    async def act(tab):
        await tab.turn_to("One")
        await tab.turn_to("Two")

    def answer(state):
        known = "digest" in state.cached_message_hashes
        return script(
            ForwardMsg(ref_hash="digest" if state.page_script_hash != "two" else "?") if known else text
        )

    record, requests = play(answer, act)
    assert [list(state.cached_message_hashes) for state in requests] == [[], ["digest"], ["digest"]]
    assert record.errors == ["the server refers to a message that was never sent"]


def test_a_fragment_reruns_by_itself_until_the_page_is_left():
    again = message()
    again.auto_rerun.interval, again.auto_rerun.fragment_id = 0.01, "f"

    async def act(tab):
        assert tab.follows
        await asyncio.sleep(0.1)
        await tab.turn_to("Two")
        assert not tab.follows

    def answer(state):
        if state.fragment_id:
            done = message("f", script_finished=ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)
            return [message("f"), done]
        return script(again) if state.page_script_hash != "two" else script(page="two")

    record, requests = play(answer, act)
    reruns = [state.fragment_id for state in requests if state.is_auto_rerun]
    assert set(reruns) == {"f"} and len(reruns) >= 2
    assert [each.kind for each in record.reruns].count("fragment") >= 2


@pytest.mark.parametrize(
    "shown, words",
    [
        (element(exception={"type": "KeyError", "message": "x"}), "exception on the page: KeyError: x"),
        (element(alert={"body": "No.", "format": 1}), "error on the page: No."),
        (message(script_finished=ForwardMsg.FINISHED_WITH_COMPILE_ERROR), "the script does not compile"),
    ],
    ids=["exception", "red box", "compile error"],
)
def test_errors_on_pages_are_recorded(shown, words):
    record, _ = play(lambda state: script(shown), lambda tab: asyncio.sleep(0))
    assert record.errors == [words]


def test_the_first_visit_presses_the_button_and_follows_the_run(monkeypatch):
    monkeypatch.setattr(deployment, "QUIET", 0.2)
    again, presses = message(), []
    again.auto_rerun.interval, again.auto_rerun.fragment_id = 0.01, "f"

    def answer(state):
        presses.extend(each.id for each in state.widget_states.widgets)
        if state.fragment_id:
            done = message("f", script_finished=ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY)
            return [message("f"), done] if len(presses) < 99 else script()
        return script(again) if presses else script(element(button={"id": "b", "label": deployment.BUTTON}))

    class Limits:
        count = 0

        def used(self):
            self.count += 1
            if self.count > 3:  # the run ends
                presses.extend("." * 99)
            return self.count

        def private(self):
            return 1

    found = served(answer, lambda address, _: deployment.first_visit(address, Limits()))
    assert presses[0] == "b" and found["errors"] == [] and found["followed"]["count"] >= 1
    assert 0 < found["comparison_s"] < 5 and found["peak_private_bytes"] == 1


def sample(at: float, rss: int) -> dict:
    others = {"children": 1, "children_rss_bytes": 5, "server_cpu_s": at / 10, "visitors_cpu_s": 0.0}
    return {"at": at, "rss_bytes": rss, **others}


def test_the_summary_compares_with_the_bars():
    record = Record(reruns=[Rerun(float(at), "page", "Plan", 0.2) for at in range(180)])
    samples = [sample(float(at), 100 if at < 120 else 104) for at in range(0, 180, 5)]
    found = load.summary(record, samples, "all is well", 3)
    assert found["holds"] == {"no error": True, "p95 below 1 s": True, "memory within 5%": True}
    assert found["memory_growth"] == pytest.approx(0.04)
    assert [row["reruns"] for row in found["minutes"]] == [60, 60, 60]
    assert found["pages"]["Plan"]["p50_s"] == pytest.approx(0.2)

    record.reruns += [Rerun(1.0, "page", "Plan", 2.0)] * 20
    samples[-1]["rss_bytes"] = 106
    log = "Traceback (most recent call last):\n  File x\nValueError: no\n"
    found = load.summary(record, samples, log, 3)
    assert found["holds"] == {"no error": False, "p95 below 1 s": False, "memory within 5%": False}
    assert found["errors"] == {"in the server's log: ValueError: no": 1}
