"""Hook of MkDocs for the page of a notebook."""

import posixpath
import re


def on_page_content(html, page, files, **_):
    """Makes links to files those of the site, and removes nbconvert's MathJax and Mermaid.

    Both scripts come from another host. `assets/math.js` renders the formulas.
    """
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def link(match):
        attribute, path, anchor = match.groups("")
        source = posixpath.join(posixpath.dirname(page.file.src_uri), path)
        file = files.get_file_from_path(posixpath.normpath(source))
        url = file.url_relative_to(page.file) if file else path
        return f'{attribute}="{url}{anchor}"'

    html = re.sub(r'<script (src=""|type=).*?</script>', "", html, flags=re.DOTALL)
    return re.sub(r'\b(href|src)="([^":#]+)(#[^"]*)?"', link, html)
