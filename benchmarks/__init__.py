"""Measurements: `python -m benchmarks.<name> [--quick]`. Progress on stderr, one JSON object last on stdout.

Ratios before absolute times: machines are noisy. Results worth keeping are dated files in results/.
"""
