// Renders the formulas that pymdownx.arithmatex marks, and those of the notebook.
document$.subscribe(() => {
  for (const part of document.querySelectorAll(".arithmatex, .jp-Notebook")) {
    renderMathInElement(part, {
      delimiters: [
        { left: "$$", right: "$$", display: true },
        { left: "\\[", right: "\\]", display: true },
        { left: "\\(", right: "\\)", display: false },
        { left: "$", right: "$", display: false },
      ],
    });
  }
});
