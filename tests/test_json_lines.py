"""JSON lines that a crash cut off."""

import pytest

from starec_ray.files import append_line, read_json_lines


@pytest.mark.parametrize("cut", range(1, 9))  # bytes: through and on either side of a letter of two
def test_a_line_that_was_cut_off_anywhere_is_left_out_and_written_over(tmp_path, cut):
    path = tmp_path / "lines"
    append_line(path, {"n": 1})
    append_line(path, {"title": "Amélie"})
    path.write_bytes(path.read_bytes()[:-cut])
    assert read_json_lines(path) == [('{"n": 1}', {"n": 1})]
    append_line(path, {"n": 2})
    assert [line for _, line in read_json_lines(path)] == [{"n": 1}, {"n": 2}]
