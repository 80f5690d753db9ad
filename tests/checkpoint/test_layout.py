"""The weights file's layout: known before a byte is written, valid safetensors, page-aligned."""

from exporter.checkpoint.layout import PAGE, layout


def test_tensors_begin_on_pages_and_gaps_are_tensors(tmp_path):
    from safetensors import safe_open

    wanted = [("a", "F32", (3, 5)), ("b", "BF16", (4096,)), ("c", "I64", ()), ("d", "F16", (7,))]
    placed = layout(wanted)
    (tmp_path / "x.safetensors").write_bytes(placed.header + bytes(placed.total_bytes - len(placed.header)))
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        names = set(file.keys())
        assert {name for name in names if not name.startswith("__pad.")} == {"a", "b", "c", "d"}
    assert [tensor.offset % PAGE for tensor in placed.tensors] == [0, 0, 0, 0]
    assert len(placed.header) % PAGE == 0


def test_no_padding_follows_a_tensor_that_fills_its_pages():
    placed = layout([("a", "F32", (1024,))])
    assert placed.total_bytes == len(placed.header) + 4096
    assert b"__pad" not in placed.header
