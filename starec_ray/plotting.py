"""The look of every plot, and how one is saved."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from starec_ray.files import written_whole

BLUE, GREY, INK = "#2a6f97", "#9aa5b1", "#333333"
COLOURS = (BLUE, "#d1495b", "#66a182", "#edae49", "#8d6a9f", "#5c677d", "#00798c", "#b56576")


def plain_frame(axes: Axes) -> None:
    """Leaves the axes at the left and below, with small ticks."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, length=3)


def save_png(figure: Figure, path: Path) -> None:
    """Draws without a screen; the file is written whole or not at all."""
    FigureCanvasAgg(figure)
    with written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=150)
