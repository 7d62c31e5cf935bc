"""Integers and short texts to bytes and back, exactly and without torch."""
