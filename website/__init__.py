"""The documentation as a site (`make docs`): docs/, some files beside it, and references made from sources."""
