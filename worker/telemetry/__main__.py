"""``python -m worker.telemetry`` writes the table of docs/metrics.md."""

from pathlib import Path

from worker.telemetry.metrics import metrics_table

BEGIN = "<!-- The table is written by `python -m worker.telemetry`. -->\n"


def main() -> None:
    """Replace the table, which stands at the end."""
    page = Path("docs/metrics.md")
    page.write_text(page.read_text().partition(BEGIN)[0] + BEGIN + "\n" + metrics_table() + "\n")


if __name__ == "__main__":
    main()
