"""Screening: finds training clips that overlap a probe set. `gates` decide, `tables` read, `report` tells."""
