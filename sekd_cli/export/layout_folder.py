"""What `--layout imc` and `--layout kaggle` add: a folder of that name beside a feature or match file.

The file stays what a command goes on with. The folder is made of it once all is done; each of its files appears whole,
and remembers the state of what it was made of, so that running a command again makes it again only where it must.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import h5py

from sekd_cli.errors import OutputError, UsageError
from sekd_cli.export.layouts import FEATURE_FILES, FLAT_LAYOUTS, FlatOutput, check_pairs, keys_of
from sekd_cli.feature_file import FeatureReader
from sekd_cli.hdf5_file import DAMAGE, HDF5_SUFFIXES, plain_attributes
from sekd_cli.match_file import MatchReader
from sekd_cli.pairs import Pair

MATCH_FILES = ("matches",)
SOURCE, STATE = "sekd_source", "sekd_source_state"  # attributes: name of a file, and its size and time


class LayoutFolder:
    """The folder of a flat layout beside the feature or match file `source`."""

    def __init__(self, source: Path, layout: str, kinds: Sequence[str], *, sharded: bool) -> None:
        """kinds: FEATURE_FILES or MATCH_FILES. Raises UsageError where there can't be such a folder."""
        if sharded:
            raise UsageError(
                f"--layout {layout}: not of a shard; sekd merge joins them, sekd convert writes the layout"
            )
        if source.suffix not in HDF5_SUFFIXES:
            example = source / f"{'feats' if kinds is FEATURE_FILES else 'matches'}.h5"
            folder = example.parent / layout
            raise UsageError(f"-o {source}: give a file such as {example}; --layout {layout} is then in {folder}")
        self.path = source.parent / layout
        self._source, self._layout = source, layout
        self._files = [self.path / f"{kind}.h5" for kind in kinds]

    def check(self, names: Iterable[str], pairs: Iterable[Pair] = (), *, overwrite: bool) -> None:
        """Find out before the work what would stop the writing after it.

        Raises UsageError if two images, or pairs, would get the same key; OutputError if a file of another origin is in
        the way, unless `overwrite`.
        """
        check_pairs(pairs, keys_of(names, self._layout), self._layout)
        for path in self._files:
            if path.exists() and not overwrite and _origin(path).get(SOURCE) != self._source.name:
                message = "exists already and was not made of"
                raise OutputError(f"{path}: {message} {self._source}; give --overwrite, or another folder with -o")

    def write_features(self) -> None:
        """Make the files anew unless they are of the feature file as it is. Raises as `FlatOutput`."""
        with ExitStack() as outputs:
            if output := self._output(outputs):
                with FeatureReader(self._source) as features:
                    output.write_features(features)

    def write_matches(self, feature_file: Path) -> None:
        """The same of a match file, and of the names of all images. Raises as `FlatOutput`."""
        with ExitStack() as outputs:
            if output := self._output(outputs):
                with FeatureReader(feature_file) as features, MatchReader(self._source) as matches:
                    output.write_stored_matches(matches, features.names())

    def _output(self, outputs: ExitStack) -> FlatOutput | None:
        """Where to write the files; None if they are up to date."""
        status = self._source.stat()
        origin = {SOURCE: self._source.name, STATE: f"{status.st_size} {status.st_mtime_ns}"}
        if all(_origin(path) == origin for path in self._files):
            return None
        return FlatOutput(layout=self._layout, folder=self.path, outputs=outputs, overwrite=True, attributes=origin)


def layout_folder(source: Path, layout: str, kinds: Sequence[str], *, sharded: bool) -> LayoutFolder | None:
    """The folder that `--layout` asks for; None for hloc's, in which `source` itself is. Raises UsageError."""
    return LayoutFolder(source, layout, kinds, sharded=sharded) if layout in FLAT_LAYOUTS else None


def _origin(path: Path) -> dict[str, object]:
    """What a file says that it was made of; nothing if it is missing or damaged."""
    with suppress(*DAMAGE), h5py.File(path) as file:
        return plain_attributes(file)
    return {}
