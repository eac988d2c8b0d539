"""Steps: functions whose calls are recorded."""
