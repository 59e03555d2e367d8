"""The dashboard: `streamlit run app.py`. Page settings and navigation, nothing else."""

import streamlit as st

st.set_page_config(page_title="qcore", page_icon=":material/compress:", layout="wide", initial_sidebar_state=220)
st.navigation(
    [
        st.Page("pages/home.py", title="Home", icon=":material/home:", default=True),
        st.Page("pages/quantize.py", title="Quantize", icon=":material/compress:"),
        st.Page("pages/compare.py", title="Compare", icon=":material/bar_chart:"),
        st.Page("pages/playground.py", title="Playground", icon=":material/forum:"),
        st.Page("pages/layers.py", title="Layers", icon=":material/layers:"),
    ]
).run()
