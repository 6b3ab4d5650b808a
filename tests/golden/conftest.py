"""`pytest tests/golden --golden` rewrites the golden files."""


def pytest_addoption(parser):
    parser.addoption("--golden", action="store_true", help="rewrite the golden files; read the diff")
