"""Write arrays of samples to the groups of a `DataTree`, in memory or in a zarr store."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import xarray as xr

from pyro_vae.distributed import from_first, is_first

SAMPLE_DIMS = ("chain", "draw")
# Dimensions and values of each variable of a group, and the groups by name.
Group = dict[str, tuple[tuple[str, ...], np.ndarray]]
Variables = dict[str, Group]


class Coordinate(Protocol):
    """Values along a dimension, such as a list, an array or a pandas index."""

    def __len__(self) -> int:
        """Return the size of the dimension."""

    def __getitem__(self, index: slice, /) -> object:
        """Return some of the values."""


Coords: TypeAlias = Mapping[str, Coordinate]  # by dimension


@dataclass(frozen=True)
class Labels:
    """Names and coordinates of dimensions.

    Args:
        dims: Names of the event dimensions by site; other sites have default names.
        coords: Coordinates by dimension.
        latent: Site with one event dimension that is called `latent_dim`, if any.
    """

    dims: Mapping[str, Sequence[str]]
    coords: Coords
    latent: str | None = None

    def of(self, site: str, plates: Sequence[str], event_dim: int) -> tuple[str, ...]:
        """Return the names of a site's plates and event dimensions.

        Raises:
            ValueError: If `dims` has a different number of names for the site.
        """
        if site in self.dims:
            names = tuple(self.dims[site])
            if len(names) != event_dim:
                raise ValueError(
                    f"dims has the names {list(names)} for site {site!r}; expected {event_dim} "
                    f"names, one for each event dimension, without the plates {list(plates)}"
                )
        elif site == self.latent:
            names = ("latent_dim",)
        else:
            names = tuple(f"{site}_dim_{i}" for i in range(event_dim))
        return (*plates, *names)

    def check(self, variables: Variables, num_data: Mapping[str, int]) -> None:
        """Raise `ValueError` if names or sizes of dimensions, sites and coordinates conflict.

        Args:
            variables: Variables of the first block.
            num_data: Final size of the dimension that further blocks extend.
        """
        sizes: dict[str, int] = {}
        for group in variables.values():
            for name, (dims, values) in group.items():
                for dim, size in zip(dims, values.shape, strict=True):
                    if sizes.setdefault(dim, size) != size:
                        raise ValueError(
                            f"dimension {dim!r} has size {size} in {name!r} and {sizes[dim]} "
                            "elsewhere. Rename one of them with dims="
                        )
        sizes |= num_data
        names = {name for group in variables.values() for name in group}
        paths = sorted(name for name in names | set(sizes) if "/" in name)
        if paths:
            raise ValueError(
                f"{paths[0]!r} contains a '/', which separates the groups of a DataTree. Rename "
                "the site or the plate"
            )
        clashes = sorted(names & set(sizes))
        if clashes:
            raise ValueError(
                f"site {clashes[0]!r} has the name of a dimension and would become its coordinate. "
                "Rename the site or the plate"
            )
        for dim, coordinate in self.coords.items():
            if dim not in sizes:
                raise ValueError(
                    f"coords has the unknown dimension {dim!r}; expected one of {sorted(sizes)}"
                )
            if len(coordinate) != sizes[dim]:
                raise ValueError(
                    f"coords has {len(coordinate)} values for {dim!r}; expected {sizes[dim]}"
                )


class TreeWriter:
    """Concatenates blocks of data in memory or in a zarr store.

    Args:
        plate: Dimension along which blocks are concatenated; None if there is one block.
        coords: Coordinates by dimension; those of `plate` cover all blocks.
        attrs: Attributes of the tree and of each group.
        store: Folder of a new zarr store.

    Raises:
        ImportError: If `store` is given and zarr is not installed.
        FileExistsError: If the store exists.
    """

    def __init__(
        self,
        plate: str | None,
        coords: Coords,
        attrs: Mapping[str, object],
        store: str | os.PathLike[str] | None,
    ) -> None:
        self.plate, self.coords, self.attrs = plate, dict(coords), dict(attrs)
        self.store = None if store is None else Path(store)
        self.blocks: dict[str, list[xr.Dataset]] = {}
        self.num_data = 0
        if self.store is not None:
            try:
                import zarr  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    "store= needs the package zarr: pip install 'pyro-vae[zarr]'"
                ) from error
            if self.store.exists():
                raise FileExistsError(
                    f"{self.store} exists already. Remove it or choose another path"
                )

    def add(self, variables: Variables, num_data: int = 0) -> None:
        """Add a block of `num_data` data; only the first has variables without a data dimension."""
        for group, arrays in variables.items():
            dataset = xr.Dataset({name: xr.Variable(*pair) for name, pair in arrays.items()})
            for dim, size in dataset.sizes.items():
                start = self.num_data if dim == self.plate else 0
                values = self.coords.get(str(dim), np.arange(start + size))[start : start + size]
                dataset = dataset.assign_coords({dim: values})
            dataset.attrs = self.attrs
            if self.store is None:
                self.blocks.setdefault(group, []).append(dataset)
            elif is_first():
                self._append(group, dataset)
        self.num_data += num_data

    def _append(self, group: str, dataset: xr.Dataset) -> None:
        first = group not in self.blocks
        self.blocks.setdefault(group, [])
        along = None if first or self.plate not in dataset.dims else self.plate
        dataset.to_zarr(self.store, group=group, mode="a", append_dim=along, consolidated=False)

    def _write_root(self) -> None:
        xr.Dataset(attrs=self.attrs).to_zarr(self.store, mode="a", consolidated=False)

    def finish(self) -> xr.DataTree:
        """Return the tree; arrays of a store are loaded lazily."""
        if self.store is not None:
            from_first(self._write_root)
            return xr.open_datatree(self.store, engine="zarr", consolidated=False)
        groups = {name: self._together(blocks) for name, blocks in self.blocks.items()}
        tree = xr.DataTree.from_dict(groups)
        tree.attrs = self.attrs
        return tree

    def _together(self, blocks: list[xr.Dataset]) -> xr.Dataset:
        along = [block for block in blocks if self.plate in block.dims]
        if len(along) < 2:
            return xr.merge(blocks, combine_attrs="override") if len(blocks) > 1 else blocks[0]
        joined = xr.concat(along, str(self.plate), data_vars="minimal", combine_attrs="override")
        others = [block for block in blocks if self.plate not in block.dims]
        return xr.merge([joined, *others], combine_attrs="override") if others else joined
