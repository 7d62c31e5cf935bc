"""The page of ``slim demo``: what is computed (``computing``), and how it is shown (``page``)."""
