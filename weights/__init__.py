"""The weights shipped with sekd, installed as the package `sekd_cli.weights` (setup.cfg maps this folder to it)."""
