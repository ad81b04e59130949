"""What a run has to show. Reads the run folder only; `html.write_report` makes the page,
`side_by_side.table` the terminal's view."""
