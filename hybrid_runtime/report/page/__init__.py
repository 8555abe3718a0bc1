"""The HTML report: figures as plain plotly descriptions, text through escaping templates, one self-contained file."""
