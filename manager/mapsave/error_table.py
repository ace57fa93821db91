"""The catalogue of errors: the page ``docs/errors.md``."""

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


_BEFORE = """\
# Errors

The ids are stable. `--json` and the service print an error as `id`, `exit_code`, `message` (what is
wrong, and where), `hint` (what to do) and `data`. [faq.md](faq.md) says more about frequent ones.

"""

if __name__ == "__main__":
    print(_BEFORE + table(), end="")
