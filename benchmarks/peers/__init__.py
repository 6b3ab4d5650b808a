"""Peers: what a benchmark compares with. Where one cannot be loaded, the result says so."""
