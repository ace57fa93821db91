"""The catalogue of errors, as ``docs/errors.md`` prints it."""

from mapsave import errors


def catalogue() -> list[type[errors.MapsaveError]]:
    """Return every error class, by exit code and id."""
    return sorted(errors.classes(), key=lambda cls: (cls.exit_code, cls.id))


def table() -> str:
    """Return the catalogue as the Markdown table of ``docs/errors.md``."""
    rows = ["| exit | id | HTTP | meaning |", "|---|---|---|---|"]
    for cls in catalogue():
        meaning = " ".join((cls.__doc__ or "").split())
        rows.append(f"| {cls.exit_code} | `{cls.id}` | {cls.http_status} | {meaning} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
