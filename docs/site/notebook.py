"""Hook of MkDocs for the page of a notebook."""

import re


def on_page_content(html, page, **_):
    """Removes nbconvert's MathJax and Mermaid, which come from another host.

    The formulas are rendered by `assets/math.js`, as on the other pages.
    """
    if page.file.src_uri.endswith(".ipynb"):
        html = re.sub(r'<script (src=""|type=).*?</script>', "", html, flags=re.DOTALL)
    return html
