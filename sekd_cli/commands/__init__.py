"""The subcommands, one file each: options -> settings -> core -> report."""
