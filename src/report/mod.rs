//! Turns an analysis into pages and charts: HTML, Markdown, JUnit, SVG and PNG.
//! Knows how a number is shown; hides the plotting library and the templates.
//! Never computes a result that is not in the analysis.
