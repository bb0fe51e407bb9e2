"""The networks: a grey image batch in, a score map and a descriptor map out. One file a network."""

from sekd_cli.networks.base import DenseMaps, DenseNetwork
from sekd_cli.networks.compact import CompactNetwork
from sekd_cli.networks.published import PublishedNetwork

NETWORKS: dict[str, type[DenseNetwork]] = {
    network.name: network for network in (CompactNetwork, PublishedNetwork)
}  # a weights file names its network by one of these keys

__all__ = ["NETWORKS", "CompactNetwork", "DenseMaps", "DenseNetwork", "PublishedNetwork"]
