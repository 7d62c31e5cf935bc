"""Measuring codecs for machines: real files, judged by classifiers and detectors that never saw the codec."""
