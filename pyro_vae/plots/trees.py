"""Plots of trees of samples, made by ArviZ."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from matplotlib.figure import Figure

from pyro_vae.arguments import checked
from pyro_vae.plots.values import IsTree, Posterior, check_rows

if TYPE_CHECKING:
    import xarray as xr
    from arviz_plots import PlotCollection


@checked
def forest(tree: Posterior, data: Sequence[int], plate: str = "data") -> Figure:
    """Show means and intervals of the latents of some data.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi`.
        data: Indices of the data in `plate`.
        plate: Name of the plate over the data.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv, xarray as xr
        >>> z = xr.DataArray(np.random.default_rng(0).normal(size=(1, 9, 2)),
        ...     dims=("chain", "draw", "data"), coords={"data": [0, 1]})
        >>> tree = xr.DataTree.from_dict({"posterior": z.to_dataset(name="z")})
        >>> type(pv.plots.forest(tree, [0])).__name__
        'Figure'

    See also: `densities`, `pairs`.
    """
    import arviz_plots  # slow to import

    check_rows(tree, "posterior", plate, data)
    return _figure_of(arviz_plots.plot_forest(tree, coords={plate: list(data)}))


@checked
def densities(tree: Posterior, data: Sequence[int], plate: str = "data") -> Figure:
    """Show the marginal posterior densities of the latents of some data.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi`.
        data: Indices of the data in `plate`.
        plate: Name of the plate over the data.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv, xarray as xr
        >>> z = xr.DataArray(np.random.default_rng(0).normal(size=(1, 9, 2)),
        ...     dims=("chain", "draw", "data"), coords={"data": [0, 1]})
        >>> tree = xr.DataTree.from_dict({"posterior": z.to_dataset(name="z")})
        >>> type(pv.plots.densities(tree, [0])).__name__
        'Figure'

    See also: `forest`, `pairs`.
    """
    import arviz_plots

    check_rows(tree, "posterior", plate, data)
    return _figure_of(arviz_plots.plot_dist(tree, coords={plate: list(data)}))


@checked
def pairs(
    tree: Posterior, datum: int | str, latents: Sequence[int] | None = None, plate: str = "data"
) -> Figure:
    """Show scatter plots of the latents of one datum against each other.

    Args:
        tree: Tree of `pyro_vae.from_pyro_svi`.
        datum: Index of the datum in `plate`.
        latents: Entries of `latent_dim` to show; all by default.
        plate: Name of the plate over the data.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv, xarray as xr
        >>> z = xr.DataArray(np.random.default_rng(0).normal(size=(1, 9, 1, 2)),
        ...     dims=("chain", "draw", "data", "latent_dim"),
        ...     coords={"data": [0], "latent_dim": [0, 1]})
        >>> tree = xr.DataTree.from_dict({"posterior": z.to_dataset(name="z")})
        >>> type(pv.plots.pairs(tree, 0)).__name__
        'Figure'

    See also: `forest`, `densities`.
    """
    import arviz_plots
    import xarray as xr

    check_rows(tree, "posterior", plate, [datum])
    if latents is not None:
        check_rows(tree, "posterior", "latent_dim", latents)
    one = tree["posterior"].to_dataset().sel({plate: datum}, drop=True)
    if latents is not None:
        one = one.sel(latent_dim=list(latents))
    return _figure_of(arviz_plots.plot_pair(xr.DataTree.from_dict({"posterior": one})))


@checked
def calibration(
    tree: Annotated["xr.DataTree", IsTree("prior_sbc", source="pyro_vae.sbc")],
    coverage: bool = False,
) -> Figure:
    """Plot the ECDF of the SBC ranks minus the uniform CDF, with a simultaneous 99% envelope.

    Args:
        tree: Tree of `pyro_vae.sbc`.
        coverage: Whether to plot the ECDF of the smallest central intervals that contain the true
            value instead.

    Returns:
        The figure.

    Example:
        >>> import numpy as np, pyro_vae as pv, xarray as xr
        >>> u = xr.DataArray(np.random.default_rng(0).uniform(size=(1, 50)), dims=("chain", "draw"))
        >>> tree = xr.DataTree.from_dict({"prior_sbc": u.to_dataset(name="z")})
        >>> type(pv.plots.calibration(tree)).__name__
        'Figure'

    See also: `pyro_vae.sbc`.
    """
    import arviz_plots

    return _figure_of(arviz_plots.plot_ecdf_pit(tree, coverage=coverage))


def _figure_of(collection: "PlotCollection") -> Figure:
    """Return the figure of an ArviZ plot and remove it from pyplot's open figures."""
    from matplotlib import pyplot

    figure = collection.viz["figure"].item()
    pyplot.close(figure)
    return figure
