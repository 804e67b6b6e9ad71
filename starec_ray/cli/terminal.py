"""Text of models and data files on a terminal."""


def printable(text: str) -> str:
    """Without control characters, which would move the cursor, clear the screen, change colours."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)
