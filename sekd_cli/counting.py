"""Numbers of things in messages."""


def counted(count: int, thing: str) -> str:
    """`1 image`, `2 images`, `1,000 matches`: of a word whose plural is regular."""
    plural = thing + ("es" if thing.endswith("ch") else "s")
    return f"{count:,} {thing if count == 1 else plural}"
