"""Pictures as text: SVG that reads on light and on dark ground."""
