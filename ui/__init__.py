"""Streamlit code shared by the pages: charts, forms, run panel, session state. All numbers come from
`qcore`."""
