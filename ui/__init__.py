"""The shared Streamlit code of the pages: charts, forms, the run panel, session state. All numbers come from
`qcore`."""
