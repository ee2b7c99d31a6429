"""Two dimensions of many: the principal components, drawn."""

from pathlib import Path

import pytest
import torch

from bindlm.errors import CheckpointError, ConfigError
from bindlm.space import plot
from bindlm.space.plot import plot_embeddings, project_2d

from ..tiny import unit_rows


@pytest.mark.parametrize("rows", [3, 7, 60])
def test_the_projection_keeps_as_much_variance_as_two_directions_can(rows: int) -> None:
    embeddings = unit_rows(rows, 8, seed=rows) * torch.linspace(1, 3, 8)
    points = project_2d(embeddings)
    centred = embeddings.double() - embeddings.double().mean(dim=0)
    largest = torch.linalg.eigvalsh(centred.T @ centred).flip(0)[:2]
    torch.testing.assert_close((points.double() ** 2).sum(dim=0), largest, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)


def test_points_in_a_plane_keep_their_distances() -> None:
    flat = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    basis = torch.linalg.qr(torch.randn(9, 2, generator=torch.Generator().manual_seed(1))).Q
    points = project_2d(flat @ basis.T + 5.0)
    torch.testing.assert_close(*(torch.pdist(each.double()) for each in (points, flat)), rtol=1e-5, atol=1e-5)


def test_few_rows_and_many_give_one_picture_with_fixed_signs() -> None:
    embeddings = unit_rows(8, 8, seed=3)
    few, many = project_2d(embeddings), project_2d(embeddings.repeat(5, 1))[:8]
    torch.testing.assert_close(few, many, rtol=1e-4, atol=1e-5)
    assert torch.equal(project_2d(embeddings), few)


@pytest.mark.parametrize("shape", [(1, 8), (2, 8), (5, 1), (1, 1)])
def test_too_little_for_two_directions_is_padded_with_zeros(shape: tuple[int, int]) -> None:
    points = project_2d(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert points.shape == (shape[0], 2)
    torch.testing.assert_close(points[:, 1], torch.zeros(shape[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(0, 8), (8,), (2, 3, 4)])
def test_no_rows_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one row"):
        project_2d(torch.zeros(shape))


@pytest.mark.parametrize(("suffix", "magic"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_a_picture_is_written_with_a_colour_and_a_name_for_each_sense(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"plot{suffix}"
    names = ["$a_b$", "\ud800\x1b", "c.wav", "d.wav"]
    plot_embeddings(path, unit_rows(4, 8), ["image", "image", "audio", "audio"], names, title="$x")
    assert path.read_bytes().startswith(magic)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    if suffix == ".svg":
        drawing = path.read_text()
        assert "image (2)" in drawing
        assert "audio (2)" in drawing
        assert "#0072b2" in drawing
        assert "#d55e00" in drawing


def test_a_disk_that_refuses_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")

    def refuse(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "plot.png").write_bytes(b"old")
    monkeypatch.setattr(plot.os, "replace", refuse)
    with pytest.raises(CheckpointError, match="cannot write in .*no space is left; free some space"):
        plot_embeddings(tmp_path / "plot.png", unit_rows(4, 8), ["image"] * 4)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("plot.png", b"old")]


def test_impossible_plots_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    rows = unit_rows(4, 8)
    for name, reason in (("plot.jpg", "suffix"), ("nowhere/plot.png", "cannot be written")):
        with pytest.raises(ConfigError, match=reason):
            plot_embeddings(tmp_path / name, rows, ["image"] * 4)
    with pytest.raises(ConfigError, match="one modality"):
        plot_embeddings(tmp_path / "plot.png", rows, ["image"])
    with pytest.raises(ConfigError, match="one name"):
        plot_embeddings(tmp_path / "plot.png", rows, ["image"] * 4, ["a"])
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'bindlm\[train\]'"):
        plot_embeddings(tmp_path / "plot.png", rows, ["image"] * 4)
