"""The documentation as a site (`make docs`): docs/, some other files, and references generated from sources."""
