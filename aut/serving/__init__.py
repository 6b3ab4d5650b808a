"""Serving: a registered version behind HTTP. It gets local folders from a source; the registry's edge is one."""
