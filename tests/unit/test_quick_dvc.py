"""What flows.quick_dvc changes inside DVC leaves every byte of a lock file as DVC writes it."""

from __future__ import annotations

from dvc import lock
from dvc.utils.serialize import _yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows import quick_dvc

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
PARAMS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


@settings(max_examples=40)
@given(st.dictionaries(TEXT, PARAMS, min_size=1, max_size=3))
def test_a_lock_file_stays_as_it_was_written(params):
    stage = {"cmd": "python -m aut probe", "deps": [{"path": "aut/probes", "md5": "0e1" * 10, "size": 12}]}
    written = _yaml.dumps_yaml({"schema": "2.0", "stages": {"probe@base": stage | {"params": {"params.yaml": params}}}})
    assert _yaml.dumps_yaml(quick_dvc.parse_for_update(written, "dvc.lock")) == written


def test_other_files_keep_their_comments():
    text = "stages: {}  # none yet\n"
    assert _yaml.dumps_yaml(quick_dvc.parse_for_update(text, "dvc.yaml")) == text


def test_dvc_still_has_what_is_changed():
    """The names that the module sets are the ones DVC reads."""
    assert "parse_yaml_for_update" in _yaml.modify_yaml.__wrapped__.__code__.co_names
    assert "DEFAULT_TIMEOUT" in lock.Lock.lock.__code__.co_names
