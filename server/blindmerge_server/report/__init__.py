"""What a run leaves for people and programs: `report.json`, a table, plots."""
