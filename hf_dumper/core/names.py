"""Help with names that were not found."""

from collections.abc import Iterable
from difflib import get_close_matches


def near(name: str, known: Iterable[str]) -> str:
    """Return a sentence that names the closest known names, or an empty string.

    The sentence starts with a space, so that it can be appended to an error message.
    """
    candidates = list(dict.fromkeys(known))
    matches = get_close_matches(name, candidates, n=3, cutoff=0.6)
    if not matches and len(candidates) <= 8:
        matches = candidates
        return f" Known: {', '.join(map(repr, matches))}." if matches else ""
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""
