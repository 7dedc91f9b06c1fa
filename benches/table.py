"""The figures of a run as a table; what was not reached is marked."""

import json
import sys

from session import number

rows = [("figure", "", "unit", "peer", "", "ratio", "wanted")]
missed = 0
for line in open(sys.argv[1]):
    row = json.loads(line)
    against = row["against"]
    wanted = row["wanted"] + ("" if row["met"] in (None, True) else "  MISSED")
    missed += row["met"] is False
    rows.append((
        row["name"], number(row["value"]), row["unit"], row["peer"],
        "" if against is None else number(against),
        "" if not against else f"{row['value'] / against:.2f}", wanted,
    ))
widths = [max(len(row[at]) for row in rows) for at in range(7)]
for row in rows:
    cells = [cell.rjust(width) if at in (1, 4, 5) else cell.ljust(width) for at, (cell, width) in enumerate(zip(row, widths))]
    print("  ".join(cells).rstrip())
print(f"\n{len(rows) - 1} figures, {missed} below what is wanted")
