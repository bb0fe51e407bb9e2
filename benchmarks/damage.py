"""What becomes of feature files in which random bytes changed: python benchmarks/damage.py [--files 1500] [--json].

Each is read whole in a process of its own, which may take three seconds. The same features are in a file as `sekd`
writes it, and in one with the structures that HDF5 uses by default. A wrong number or a missing image that no error
tells of counts as `wrong`.
"""

import argparse
import json
import os
import random
import signal
import tempfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from sekd_cli.errors import InputFileError
from sekd_cli.feature_file import FeatureReader, FeatureWriter, file_attributes
from sekd_cli.stored_features import StoredFeatures

NAMES = ["a.jpg", "b/c.jpg", "b/d/e.jpg", *(f"many/{number}.jpg" for number in range(12))]
ATTRIBUTES = file_attributes(network="compact", weights_sha256="ab" * 32, settings={"max_keypoints": 2048})
LONGEST = 3  # seconds
RIGHT, REFUSED, WRONG = range(3)  # exit codes of a reading process
OUTCOMES = {RIGHT: "right", REFUSED: "refused", WRONG: "wrong"}


def features(seed: int) -> StoredFeatures:
    """A few random keypoints."""
    random_numbers = np.random.default_rng(seed)
    return StoredFeatures(
        keypoints=random_numbers.random((9, 2), dtype=np.float32),
        scores=np.ones(9, dtype=np.float32),
        descriptors=random_numbers.random((9, 4), dtype=np.float32),
        image_size=(1, 1),
    )


def write_ours(path: Path) -> None:
    """A file of `sekd`."""
    with FeatureWriter(path, ATTRIBUTES) as writer:
        for seed, name in enumerate(NAMES):
            writer.write(name, features(seed))


def write_plain(path: Path) -> None:
    """What other tools write."""
    with h5py.File(path, "w") as file:
        file.attrs.update(ATTRIBUTES)
        for seed, name in enumerate(NAMES):
            one = features(seed)
            group = file.create_group(name)
            group["keypoints"], group["scores"], group["descriptors"] = one.keypoints, one.scores, one.descriptors.T
            group.attrs["complete"] = True


def read(path: Path) -> int:
    """Exit code of a process that reads everything."""
    try:
        with FeatureReader(path) as reader:
            if reader.names() != sorted(NAMES):
                return WRONG
            for seed, name in enumerate(NAMES):
                if not np.array_equal(reader.read(name).descriptors, features(seed).descriptors):
                    return WRONG
    except InputFileError:
        return REFUSED
    return RIGHT


def outcome(path: Path) -> str:
    """What happens when a file is read."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONGEST)
        os._exit(read(path))
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return "hung" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"
    return OUTCOMES[os.WEXITSTATUS(status)]


def measure(content: bytes, files: int, folder: Path) -> Counter[str]:
    """How often each outcome came up."""
    dice, found = random.Random(0), Counter[str]()
    for _ in range(files):
        changed = bytearray(content)
        for _ in range(dice.choice([1, 1, 2, 8, 64])):
            changed[dice.randrange(len(changed))] = dice.choice([0, 255, dice.randrange(256)])
        (folder / "changed.h5").write_bytes(changed)
        found[outcome(folder / "changed.h5")] += 1
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1500)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    table = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, write in (("sekd's files", write_ours), ("HDF5's default", write_plain)):
            path = Path(folder) / "whole.h5"
            path.unlink(missing_ok=True)
            write(path)
            table[name] = measure(path.read_bytes(), options.files, Path(folder))
    if options.json:
        print(json.dumps(table, indent=2))
        return
    columns = ("right", "refused", "wrong", "hung", "crashed")
    print(f"{options.files} files each".ljust(20), *(f"{column:>14}" for column in columns))
    for name, found in table.items():
        print(name.ljust(20), *(f"{found[column]:14}" for column in columns))


if __name__ == "__main__":
    main()
