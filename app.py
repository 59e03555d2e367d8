"""The dashboard, `streamlit run app.py`: page settings and navigation."""

import streamlit as st

from qcore.base import logs
from ui import exposure, navigation

logs.configure()
exposure.settle()
st.set_page_config(
    page_title="qcore", page_icon=":material/compress:", layout="wide", initial_sidebar_state=220
)
st.navigation(navigation.pages()).run()
