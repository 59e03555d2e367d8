"""The dashboard, `streamlit run app.py`: page settings and navigation.

The command imports this file once and serves `app`; Streamlit then runs the file again for every visit and
interaction. A host that starts Streamlit in its own way gets the pages without what `ui/gate.py` adds.
"""

from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from streamlit import runtime

from qcore.base import logs
from qcore.base.home import is_public
from qcore.jobs import upkeep
from ui import exposure, gate, navigation

ICON = Path(__file__).with_name("ui") / "icon.svg"  # a material icon would come from another site

logs.configure()
declared = gate.declared()
exposure.settle()
if runtime.exists():
    if is_public():
        upkeep.now_and_then()
    st.set_page_config(page_title="qcore", page_icon=str(ICON), layout="wide", initial_sidebar_state=220)
    st.navigation(navigation.pages()).run()
else:
    guard = Middleware(gate.Gate, declared=declared)
    app = st.App(Path(__file__), middleware=[guard], lifespan=exposure.opened)
