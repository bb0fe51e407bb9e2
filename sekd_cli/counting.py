"""Numbers of things in messages."""


def counted(count: int, thing: str) -> str:
    """`1 image`, `2 images`: of a word whose plural ends in s alone."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
